"""Code that checks the book's numbers and shares no line with it."""
