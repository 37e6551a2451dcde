"""Axes of a stack: layers of one shape under vmap or scan, in one array."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold_jax.layouts.base import Roles


@dataclass(frozen=True)
class StackedAxes:
    """Axes that a stacked array has besides those of one layer.

    Attributes:
        axes: their places in the array; negative ones count from the end.
        sizes: their lengths.
    """

    axes: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of layers."""
        return int(np.prod(self.sizes, dtype=np.int64))

    def to_front(self, array: Array) -> Array:
        """Return a stacked array as (count, *shape of one layer)."""
        moved = np.moveaxis(array, self.axes, range(len(self.axes)))
        return moved.reshape(self.count, *moved.shape[len(self.axes) :])

    def back(self, array: Array) -> Array:
        """Return (count, *shape of one layer) with the axes of the stack in their places."""
        spread = array.reshape(*self.sizes, *array.shape[1:])
        return linalg.contiguous(np.moveaxis(spread, range(len(self.axes)), self.axes))

    def roles(self, roles: Roles) -> Roles:
        """Return the roles of every axis of a stacked array."""
        spread = [*(f"stack{i}" for i in range(len(self.axes))), *roles]
        return tuple(spread[i] for i in _moved(len(spread), self.axes))


def _moved(ndim: int, axes: Sequence[int]) -> list[int]:
    """Return the place of each axis before np.moveaxis(x, range(len(axes)), axes)."""
    # Axis i has the size i + 1: after NumPy has moved the axes, the sizes tell which one is where.
    sizes = np.empty(tuple(range(1, ndim + 1)), dtype=np.uint8)
    return [size - 1 for size in np.moveaxis(sizes, range(len(axes)), axes).shape]


@dataclass(frozen=True)
class ObservedAxes:
    """Axes of a kernel as a trace showed them.

    Attributes:
        stacked: along these it is a stack.
        layer_axes: these are axes of one layer's kernel.
    """

    stacked: frozenset[int] = frozenset()
    layer_axes: frozenset[int] = frozenset()


def find_stacks(
    kernel: tuple[int, ...],
    layer_shape: tuple[int, ...],
    bias: tuple[int, ...] | None,
    one_bias: tuple[int, ...],
    seen: ObservedAxes,
) -> tuple[StackedAxes, StackedAxes]:
    """Return the stacks of a kernel and a bias, given the shapes of one layer.

    Args:
        kernel: the shape as it is stored.
        layer_shape: the shape of one layer's kernel.
        bias: the shape as it is stored; None without one.
        one_bias: the shape of one layer's bias.
        seen: what a trace showed of the axes of the kernel.

    Raises:
        Refused: the shapes do not fit, or fit in more than one way.
    """
    if kernel == layer_shape and bias in (None, one_bias):
        return StackedAxes(), StackedAxes()
    # Nothing stored says which axes are the stack's: `nn.vmap` and `nn.scan` put them anywhere. A
    # square layer leaves several ways, of which a trace or the bias may leave one.
    ways = [
        (axes, behind)
        for axes in _places(kernel, layer_shape)
        if seen.stacked.issubset(axes) and seen.layer_axes.isdisjoint(axes)
        for behind in ([()] if bias is None else _places(bias, one_bias))
        # The bias is stacked along as many axes of the same lengths.
        if bias is None or [kernel[a] for a in axes] == [bias[a] for a in behind]
    ]
    if not ways:
        raise Refused(f"its kernel has shape {kernel}, which is not a stack of {layer_shape}")
    if len(ways) > 1:
        raise Refused(
            f"its kernel of shape {kernel} is a stack of {layer_shape} along more than one "
            "possible axis; give inputs=, or let the number of layers be no size of the kernel"
        )
    ((axes, behind),) = ways
    sizes = tuple(kernel[axis] for axis in axes)
    return StackedAxes(_from_end(axes, kernel), sizes), StackedAxes(
        _from_end(behind, bias or ()), sizes
    )


def _from_end(axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a last axis as -1: it is last in the arrays of the stages, too."""
    return (-1,) if axes == (len(shape) - 1,) and len(shape) > 1 else axes


def _places(shape: tuple[int, ...], layer_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the axes whose removal leaves the shape of one layer."""
    return [
        axes
        for axes in itertools.combinations(range(len(shape)), max(len(shape) - len(layer_shape), 0))
        if tuple(size for axis, size in enumerate(shape) if axis not in axes) == layer_shape
    ]
