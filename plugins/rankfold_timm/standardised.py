"""timm's convolutions that standardise their weight: in BiT, NFNets and hybrid ViTs."""

from __future__ import annotations

from typing import Any

from rankfold.ops import Conv
from rankfold_torch.layers.same_rules import read_standardised


def read(layer: Any) -> Conv:
    """Read a convolution with the weight that it computes.

    A scaled one (`gain`) multiplies its channels by a learnt gain and a constant scale: Brock, De,
    Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
    2021 (arXiv:2101.08692).
    """
    # (out, 1, 1, 1) in the layer; both factors are folded into the weight, and none is left to be
    # applied.
    gain = (layer.gain * layer.scale).flatten() if hasattr(layer, "gain") else None
    return read_standardised(layer, same=getattr(layer, "same_pad", False), gain=gain)
