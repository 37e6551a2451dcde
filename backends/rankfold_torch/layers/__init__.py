"""Layers of PyTorch as ops, and modules built from ops.

Layer rules of plugins name functions here: `read`, `read_same`, `read_standardised`, `to_array`.
"""

from rankfold_torch.layers.same_rules import read_same, read_standardised
from rankfold_torch.layers.stock import read, to_array

__all__ = ["read", "read_same", "read_standardised", "to_array"]
