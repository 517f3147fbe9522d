"""Studies: methods, people, prompts and seeds, and the store of their pictures."""
