"""transformers' convolutions that standardise their weight: in BiT and hybrid ViTs and DPTs."""

from __future__ import annotations

from typing import Any

from rankfold.ops import Conv
from rankfold_torch.layers.same_rules import read_standardised


def read(layer: Any) -> Conv:
    """Read a convolution with the weight that it computes and the padding of its `pad`, if any."""
    return read_standardised(layer, same=layer.pad is not None)
