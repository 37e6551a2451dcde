"""Kernel, stride, padding and dilation of a convolution in one canonical form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeGuard

import numpy as np

from rankfold.errors import RankfoldError

Pairs: TypeAlias = tuple[tuple[int, int], ...]
Padding: TypeAlias = Pairs | Literal["same", "same_lower"]


@dataclass(frozen=True)
class Geometry:
    """Geometry of a convolution, a value per spatial axis.

    Attributes:
        kernel: its sizes.
        stride: at least 1.
        padding: (low, high) pairs, or a string where it depends on the size of the input.
        dilation: at least 1.
        output_padding: elements appended to the output of a transposed convolution.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]

    @property
    def axes(self) -> int:
        """Number of spatial axes, 1 to 3."""
        return len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """Number of input elements that a dilated kernel spans along each axis."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    def pads(self, spatial: Sequence[int]) -> Pairs:
        """Return the (low, high) padding of each axis for an input of that spatial size."""
        if not isinstance(self.padding, str):
            return self.padding
        pairs = []
        for size, stride, reach in zip(spatial, self.stride, self.reach, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            low = total // 2 if self.padding == "same" else total - total // 2
            pairs.append((low, total - low))
        return tuple(pairs)


def per_axis(owner: str, name: str, value: object, axes: int, minimum: int) -> tuple[int, ...]:
    """Convert an int, or one int per axis, to one int per axis.

    Raises:
        RankfoldError: it is neither, or below the minimum.
    """
    values = (value,) * axes if is_int(value) else value
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or len(values) != axes
        or not all(is_int(v) and v >= minimum for v in values)
    ):
        raise RankfoldError(
            f"{owner}: {name} {value!r}; use an int or {axes} ints from {minimum} on"
        )
    return tuple(int(v) for v in values)


def padding(owner: str, value: object, axes: int) -> Padding:
    """Convert any way to write a padding to pairs, or to a string if it depends on the input.

    Raises:
        RankfoldError: it is none of them.
    """
    if value == "valid":
        return ((0, 0),) * axes
    if value == "same":
        return "same"
    if value == "same_lower":
        return "same_lower"
    values = (value,) * axes if is_int(value) else value
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == axes:
        pairs = tuple(pair for pair in map(_pair, values) if pair is not None)
        if len(pairs) == axes:
            return pairs
    raise RankfoldError(
        f"{owner}: padding {value!r}; use an int, {axes} ints or (low, high) pairs from 0 on, "
        "'valid', 'same' or 'same_lower'"
    )


def _pair(value: object) -> tuple[int, int] | None:
    pair = (value, value) if is_int(value) else value
    if isinstance(pair, Sequence) and len(pair) == 2 and all(is_int(v) and v >= 0 for v in pair):
        return int(pair[0]), int(pair[1])
    return None


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, of Python or of NumPy, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
