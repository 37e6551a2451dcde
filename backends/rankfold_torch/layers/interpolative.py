"""Interpolative stages: layers with the identity among the rows or the columns of their matrix.

Of y = P [1; T] z the inputs z are outputs themselves, and T z is computed for the others; a wide
layer is the transpose of such a one (`rankfold.ops.interpolation`). `weight` is T alone. The order
of the channels is a buffer of the state, so that a state dictionary holds all that the layer is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from rankfold.linalg import Array
from rankfold.ops import Conv, Linear
from rankfold.ops.interpolation import (
    gather_order,
    is_tall,
    pivots_in,
    stored_weight,
    with_stored_weight,
)
from rankfold_torch.layers.parameter_memory import parameter


class Interpolative(nn.Module):
    """A `Linear` or pointwise `Conv` with pivots.

    Args:
        weight: T, (out − in, in, *ones) of a tall layer, (out, in − out, *ones) of a wide one.
        bias: (out,) or None.
        order: indices of its max(in, out) channels, see `rankfold.ops.interpolation.gather_order`.
        tall: whether there are at least as many outputs as inputs.
    """

    if TYPE_CHECKING:  # an annotation that is there at run time is none that TorchScript reads
        order: torch.Tensor
        bias: nn.Parameter | None

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        order: torch.Tensor,
        *,
        tall: bool,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)
        self.register_buffer("order", order)
        self.tall = tall
        self.axes = weight.ndim - 2
        # The rank is the number of inputs of a tall layer and of outputs of a wide one.
        self.rank = weight.shape[1 if tall else 0]
        self.is_identity = weight.numel() == 0  # of ascending pivots

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name for it
        """Return (..., out) of (..., in), or (batch, out, *spatial) of (batch, in, *spatial)."""
        axis = -1 - self.axes  # counted from the end: a batch axis may be missing
        if self.is_identity:
            output = input
        elif self.tall:
            # Concatenated and selected from, rather than written to two parts of a new tensor: as
            # fast (0.9 to 1.1 of it, order 512 to 2048), and what all exporters know.
            both = torch.cat([input, self.product(input)], axis)
            output = both.index_select(axis, self.order)
        else:
            ordered = input.index_select(axis, self.order)
            rest = ordered.narrow(axis, self.rank, self.order.shape[0] - self.rank)
            output = ordered.narrow(axis, 0, self.rank) + self.product(rest)
        if self.bias is not None:
            output = output + self.bias.reshape([-1] + [1] * self.axes)
        return output

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return T x."""
        if self.axes == 0:
            return functional.linear(x, self.weight)
        if self.axes == 1:
            return functional.conv1d(x, self.weight)
        if self.axes == 2:
            return functional.conv2d(x, self.weight)
        return functional.conv3d(x, self.weight)

    def extra_repr(self) -> str:
        """Return the sizes."""
        size = self.order.shape[0]
        into, out = (self.rank, size) if self.tall else (size, self.rank)
        return f"{into}, {out}, bias={self.bias is not None}"


def build(stage: Linear | Conv, like: nn.Module) -> Interpolative:
    """Build the layer of a stage with dtype, device and mode of the layer replaced."""
    weight, added = like.weight, None
    assert isinstance(weight, torch.Tensor)
    if stage.bias is not None:
        bias = like.bias  # which a table has not
        assert isinstance(bias, torch.Tensor)
        added = parameter(stage.bias, bias)
    with torch.inference_mode(mode=False):
        order = torch.tensor(gather_order(stage), device=weight.device)
    return Interpolative(parameter(stored_weight(stage), weight), added, order, tall=is_tall(stage))


def read(layer: Interpolative, weight: Array, bias: Array | None) -> Linear | Conv:
    """Return the op of a layer.

    Args:
        layer: the layer.
        weight: T as an array.
        bias: of the layer.
    """
    pivots = pivots_in(layer.order.tolist(), layer.rank, tall=layer.tall)
    whole = with_stored_weight(weight, pivots, tall=layer.tall)
    if layer.axes:
        return Conv(whole, bias, pivots=pivots)
    return Linear(whole, bias, pivots=pivots)
