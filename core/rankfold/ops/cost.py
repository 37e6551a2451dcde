"""Parameters, multiply-accumulates and output extents of ops, from their shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rankfold.errors import RankfoldError
from rankfold.ops.types import (
    Conv,
    ConvTranspose,
    Embedding,
    Extent,
    Linear,
    Op,
    as_chain,
    geometry,
    pivots_of,
)


def params(ops: Op | Iterable[Op]) -> int:
    """Return the number of parameters (weights and biases) of an op or a chain.

    What an interpolative layer passes on has none.
    """
    return sum(
        _weight_size(op) + (0 if op.bias is None else op.bias.shape[0]) for op in as_chain(ops)
    )


def _weight_size(op: Op) -> int:
    """Return how many numbers of a weight are stored, and multiplied by at each position."""
    pivots = pivots_of(op)
    return math.prod(op.weight.shape) - (0 if pivots is None else len(pivots) ** 2)


def output_extent(op: Op, extent: Extent) -> Extent:
    """Return the extent of an op's output for an input of that extent.

    Raises:
        RankfoldError: the input has the wrong number of axes or is smaller than the kernel.
    """
    if isinstance(op, (Linear, Embedding)):
        return extent
    geo = geometry(op)
    if len(extent) != geo.axes + 1:
        raise RankfoldError(
            f"{type(op).__name__}: extent {extent} needs (batch, *spatial) with {geo.axes} "
            "spatial axes"
        )
    sizes = []
    pads = geo.pads(extent[1:])
    for axis, (size, (low, high)) in enumerate(zip(extent[1:], pads, strict=True)):
        reach = geo.reach[axis]
        if isinstance(op, Conv):
            out = (size + low + high - reach) // geo.stride[axis] + 1
        else:
            full = (size - 1) * geo.stride[axis] + reach
            out = full - low - high + geo.output_padding[axis]
        if out < 1:
            raise RankfoldError(
                f"{type(op).__name__}: an input of size {size} along spatial axis {axis} leaves "
                f"no output for kernel {geo.kernel[axis]}, dilation {geo.dilation[axis]} and "
                f"padding {(low, high)}"
            )
        sizes.append(out)
    return (extent[0], *sizes)


def macs(ops: Op | Iterable[Op], extent: Extent) -> int:
    """Count the multiply-accumulates of an op or a chain for one input of that extent.

    Biases and table look-ups cost none. Border positions count in full.
    """
    total = 0
    for op in as_chain(ops):
        out = output_extent(op, extent)
        if isinstance(op, (Linear, Conv)):
            total += math.prod(out) * _weight_size(op)
        elif isinstance(op, ConvTranspose):
            total += math.prod(extent) * math.prod(op.weight.shape)
        extent = out
    return total


@dataclass(frozen=True, order=False)
class Cost:
    """Parameters, and multiply-accumulates in one forward pass on the example inputs."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def less(self, other: Cost) -> Cost:
        """Return the difference to another cost."""
        return Cost(self.params - other.params, self.macs - other.macs)

    def within(self, other: Cost) -> bool:
        """Return whether neither count is above the other's."""
        return self.params <= other.params and self.macs <= other.macs
