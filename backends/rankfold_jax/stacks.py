"""Where the axes of a stack lie: layers of one shape under vmap or scan, in one array."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankfold.errors import Refused
from rankfold.ops import Array
from rankfold_jax.forms import Roles


@dataclass(frozen=True)
class Stack:
    """The axes that a stacked array has more than one layer's.

    Attributes:
        axes: their places in the array; negative ones count from the end.
        sizes: their lengths.
    """

    axes: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """The number of layers."""
        return int(np.prod(self.sizes, dtype=np.int64))

    def to_front(self, array: Array) -> Array:
        """(count, *shape of one layer)."""
        moved = np.moveaxis(array, self.axes, range(len(self.axes)))
        return moved.reshape(self.count, *moved.shape[len(self.axes) :])

    def back(self, array: Array) -> Array:
        """(count, *shape of one layer) with the axes of the stack in their places."""
        spread = array.reshape(*self.sizes, *array.shape[1:])
        return np.ascontiguousarray(np.moveaxis(spread, range(len(self.axes)), self.axes))

    def roles(self, roles: Roles) -> Roles:
        """The roles of every axis of a stacked array."""
        spread = [*(f"stack{i}" for i in range(len(self.axes))), *roles]
        return tuple(spread[i] for i in _moved(len(spread), self.axes))


def _moved(ndim: int, axes: Sequence[int]) -> list[int]:
    """For each axis after np.moveaxis(x, range(len(axes)), axes), its place before."""
    sizes = np.empty(tuple(range(1, ndim + 1)), dtype=np.uint8)
    return [size - 1 for size in np.moveaxis(sizes, range(len(axes)), axes).shape]


def find_stack(
    found: tuple[int, ...],
    one: tuple[int, ...],
    bias: tuple[int, ...] | None,
    one_bias: tuple[int, ...],
) -> Stack:
    """The stack of a kernel of which a layer's own shape is known.

    Args:
        found: the shape of the kernel as it is stored.
        one: the shape of one layer's kernel.
        bias: the shape of the bias as it is stored; None without one.
        one_bias: the shape of one layer's bias.

    Raises:
        Refused: the shapes do not fit, or fit in more than one way.
    """
    extra = len(found) - len(one)
    if extra == 0 and found == one:
        return Stack()
    places = list(_places(found, one))
    if bias is not None:
        agreeing = [axes for axes in places if axes in _places(bias, one_bias)]
        places = agreeing or places
    if not places:
        raise Refused(f"its kernel has shape {found}, which is not a stack of {one}")
    if len(places) > 1:
        raise Refused(
            f"its kernel of shape {found} is a stack of {one} along more than one possible axis"
        )
    axes = places[0]
    sizes_of = tuple(found[axis] for axis in axes)
    if axes == (len(found) - 1,) and len(found) > 1:
        axes = (-1,)
    return Stack(axes, sizes_of)


def _places(found: tuple[int, ...], one: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The axes whose removal leaves the shape of one layer."""
    fitting = []
    for axes in itertools.combinations(range(len(found)), max(len(found) - len(one), 0)):
        if tuple(size for axis, size in enumerate(found) if axis not in axes) == one:
            fitting.append(axes)
    return fitting
