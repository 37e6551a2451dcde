"""Compressing Flax Linen models."""
