"""What a single page of the book needs, a module a page."""
