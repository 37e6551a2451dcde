"""Compression of checkpoints as a stream, without a model."""
