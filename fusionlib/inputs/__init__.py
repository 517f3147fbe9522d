"""Inputs: pictures, faces and identity masks."""
