"""Compressions of networks of the size that they have in use."""
