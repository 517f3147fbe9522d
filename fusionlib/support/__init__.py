"""Files and provenance, without a word about the method."""
