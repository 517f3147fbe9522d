"""The studio: pictures made by hand in a notebook."""
