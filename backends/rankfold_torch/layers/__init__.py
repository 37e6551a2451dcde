"""Layers of PyTorch as ops, and modules built from ops."""
