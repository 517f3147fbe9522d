"""Figures and tables, as notebooks show them."""
