"""Replacement of modules in a model."""
