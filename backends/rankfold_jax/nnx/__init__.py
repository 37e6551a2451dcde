"""Compressing Flax NNX models."""
