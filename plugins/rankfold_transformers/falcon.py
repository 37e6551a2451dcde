"""Falcon's linear layer: `nn.Linear` in all but the order of its operations."""

from __future__ import annotations

from typing import Any

import torch

from rankfold.ops import Linear


def read(layer: Any) -> Linear:
    """The layer as a `Linear`; half precision comes as float32, in which it is exact."""
    arrays = [t if t is None else t.detach().cpu() for t in (layer.weight, layer.bias)]
    weight, bias = (
        None if t is None else (t if t.dtype == torch.float64 else t.float()).numpy()
        for t in arrays
    )
    assert weight is not None
    return Linear(weight, bias)
