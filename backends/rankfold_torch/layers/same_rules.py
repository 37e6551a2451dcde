"""Parts of layer rules: convolutions with "SAME" padding and with standardised weights.

Together with `rankfold_torch.layers.stock.read` and `to_array` these are for plugins, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rankfold.errors import Refused
from rankfold.ops import Conv
from rankfold_torch.layers.stock import read, to_array


def read_same(layer: Any) -> Conv:
    """Read a convolution that pads as TensorFlow's and XLA's "SAME", whatever its `padding` says.

    Args:
        layer: of a subclass of `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.

    Raises:
        Refused: it is none.
    """
    return replace(_convolution(layer), padding="same")


def read_standardised(layer: Any, *, same: bool, gain: torch.Tensor | None = None) -> Conv:
    """Read a convolution with its weight standardised per output channel.

    The weight of a channel has mean 0 and variance 1 over its inputs and taps, but for `layer.eps`
    under the root: (w - mean) / sqrt(variance + eps).

    Source: Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization
    and Weight Standardization", 2019, equation 7 (arXiv:1903.10520).

    Args:
        layer: of a subclass of `nn.Conv2d` or alike, with `eps`.
        same: whether it pads as "SAME" does, in place of its `padding`.
        gain: multiplies the channels, (out,); None for 1.

    Raises:
        Refused: it is no convolution.
    """
    op = _convolution(layer)
    # In float64, then in the layer's dtype (at least float32): rounding shows once, at the end.
    weight = layer.weight.detach().double()
    # The variance of the population, as batch normalisation has it.
    variance, mean = torch.var_mean(weight.flatten(1), dim=1, correction=0)
    by = (variance + layer.eps).rsqrt()
    if gain is not None:
        by = by * gain.detach().double()
    shape = (-1, *(1,) * (weight.ndim - 1))
    standardised = (weight - mean.reshape(shape)) * by.reshape(shape)
    array = to_array(standardised.to(torch.promote_types(layer.weight.dtype, torch.float32)))
    return replace(op, weight=array, padding="same" if same else op.padding)


def _convolution(layer: Any) -> Conv:
    op = read(layer)
    if not isinstance(op, Conv):
        raise Refused(f"its rule is for convolutions, and it is a {type(op).__name__}")
    return op
