"""Decompositions: one a file, each a function from an op to a chain of ops."""
