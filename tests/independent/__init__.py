"""Checks of the book's numbers that share no line with the code that computes them."""
