"""Measurements: who is in a picture, and how sure a difference between methods is."""
