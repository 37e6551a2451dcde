"""GPT-2's `Conv1D` is a fully connected layer y = x W + b whose weight is stored (in, out)."""

from __future__ import annotations

from typing import Any

import torch

from rankfold.ops import Linear


def read(layer: Any) -> Linear:
    """Read a `Conv1D` as the `Linear` it is; half precision comes as float32, exactly."""
    weight, bias = layer.weight.detach().cpu(), layer.bias.detach().cpu()
    if weight.dtype != torch.float64:
        weight, bias = weight.float(), bias.float()
    return Linear(weight.numpy().T, bias.numpy())
