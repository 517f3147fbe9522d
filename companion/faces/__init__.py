"""Faces found, aligned and turned into embeddings."""
