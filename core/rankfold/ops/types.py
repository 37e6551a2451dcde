"""Layers as frozen dataclasses of arrays and geometry, and their costs.

A decomposition turns one op into a chain of ops of this same closed set, so everything that
looks at layers (costs, reference, adapters, decompositions) is written once over four classes.

Weights of `Linear`, `Conv` and `ConvTranspose` are laid out (out, in/groups, *kernel), transposed
convolutions included; an `Embedding` is (num_embeddings, embedding_dim).

The arrays are NumPy's, or those of another library of the array API standard: the weights of a
model on an accelerator stay there while they are decomposed.

The *extent* of an op's input is its shape without the channel axis: the leading axes for a
`Linear`, the shape of the indices for an `Embedding`, (batch, *spatial) for a convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array, is_real, taken
from rankfold.ops.geometry import Geometry, is_int, padding, per_axis

Extent: TypeAlias = tuple[int, ...]
Pivots: TypeAlias = tuple[int, ...]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_MAX_SPATIAL_AXES = 3
"""The most that layers of the frameworks have: no `Conv4d` exists."""


@dataclass(frozen=True, eq=False)
class Linear:
    """Fully connected layer y = x Wᵀ + b on the last axis.

    With groups W is block diagonal, as in a grouped convolution with a kernel of 1. That is also
    how a stack of layers of one shape is written, each on an input of its own.

    With pivots it is *interpolative*: with at least as many outputs as inputs, the rows of W at the
    pivots are, in ascending order, those of the identity, so that these outputs are the inputs
    themselves; with fewer outputs than inputs the columns are. What is left of W is all that is
    stored (`rankfold.ops.interpolation`).

    Args:
        weight: (out, in/groups).
        bias: (out,) or None.
        groups: the number of groups; divides both channel counts.
        pivots: min(out, in) rows or columns of the weight, ascending; None for an ordinary layer.

    Raises:
        RankfoldError: a shape or a value does not fit.

    Example:
        >>> op = rf.Linear(np.ones((64, 48)), bias=np.zeros(64))
        >>> [stage.weight.shape for stage in rf.truncated_svd(op, 8)]
        [(8, 48), (64, 8)]
    """

    weight: Array
    bias: Array | None = None
    groups: int = 1
    pivots: Pivots | None = None

    def __post_init__(self) -> None:
        _check_arrays(self, ndim=(2,))
        _check_groups(self)
        _check_pivots(self)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Table look-up: index i gives row i of the weight.

    Args:
        weight: (num_embeddings, embedding_dim).

    Raises:
        RankfoldError: the weight is not a matrix of floating-point numbers.

    Example:
        >>> table, last = rf.truncated_svd(rf.Embedding(np.eye(90, 24)), 8)
        >>> table.weight.shape, last.weight.shape
        ((90, 8), (24, 8))
    """

    weight: Array

    def __post_init__(self) -> None:
        _check_arrays(self, ndim=(2,))

    @property
    def bias(self) -> None:
        """Always None: a table has no bias."""
        return

    @property
    def groups(self) -> int:
        """Always 1: a table has no groups."""
        return 1


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution (cross-correlation) in 1 to 3 spatial dimensions.

    Args:
        weight: (out, in/groups, *kernel).
        bias: (out,) or None.
        stride: an int or one int per spatial axis; at least 1.
        padding: an int, one int or one (low, high) pair per axis, "valid" (none), "same"
            (output size ceil(size/stride), the odd element at the high end) or "same_lower"
            (the odd element at the low end).
        dilation: an int or one int per axis; at least 1.
        groups: the number of groups; divides both channel counts.
        padding_mode: what the padding holds: "zeros", "reflect", "replicate" or "circular".
        pivots: as of a `Linear`, for a kernel of 1 without stride and padding.

    Raises:
        RankfoldError: a shape or a value does not fit.

    Example:
        >>> op = rf.Conv(np.ones((64, 48, 3, 3)), stride=2, padding=1)
        >>> op.stride, op.padding
        ((2, 2), ((1, 1), (1, 1)))
    """

    weight: Array
    bias: Array | None = None
    stride: int | Sequence[int] = 1
    padding: int | str | Sequence[int] | Sequence[Sequence[int]] = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1
    padding_mode: str = "zeros"
    pivots: Pivots | None = None

    def __post_init__(self) -> None:
        _check_arrays(self, ndim=(3, 4, 5))
        name, axes = type(self).__name__, self.weight.ndim - 2
        _set(self, "stride", per_axis(name, "stride", self.stride, axes, minimum=1))
        _set(self, "dilation", per_axis(name, "dilation", self.dilation, axes, minimum=1))
        _set(self, "padding", padding(name, self.padding, axes))
        if self.padding_mode not in _PADDING_MODES:
            raise RankfoldError(
                f"Conv: padding_mode {self.padding_mode!r} is unknown; use one of {_PADDING_MODES}"
            )
        _check_groups(self)
        _check_pivots(self)


@dataclass(frozen=True, eq=False)
class ConvTranspose:
    """Transposed convolution (the adjoint of a strided `Conv`) in 1 to 3 spatial dimensions.

    Its output has (size − 1)·stride + dilation·(kernel − 1) + 1 − low − high + output_padding
    elements along each axis.

    Args:
        weight: (out, in/groups, *kernel), the layout of `Conv`.
        bias: (out,) or None.
        stride: an int or one int per spatial axis; at least 1.
        padding: an int, one int or one (low, high) pair per axis, or "valid": what is cut off the
            full output.
        dilation: an int or one int per axis; at least 1.
        groups: the number of groups; divides both channel counts.
        output_padding: an int or one int per axis: elements appended at the high end.

    Raises:
        RankfoldError: a shape or a value does not fit.

    Example:
        >>> op = rf.ConvTranspose(np.ones((24, 48, 4, 4)), stride=2, padding=1)  # 48 channels to 24
        >>> [type(stage).__name__ for stage in rf.channel_svd(op, 8)]
        ['ConvTranspose', 'Conv']
    """

    weight: Array
    bias: Array | None = None
    stride: int | Sequence[int] = 1
    padding: int | str | Sequence[int] | Sequence[Sequence[int]] = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1
    output_padding: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        _check_arrays(self, ndim=(3, 4, 5))
        name, axes = type(self).__name__, self.weight.ndim - 2
        _set(self, "stride", per_axis(name, "stride", self.stride, axes, minimum=1))
        _set(self, "dilation", per_axis(name, "dilation", self.dilation, axes, minimum=1))
        extra = per_axis(name, "output_padding", self.output_padding, axes, minimum=0)
        _set(self, "output_padding", extra)
        if isinstance(self.padding, str) and self.padding != "valid":
            raise RankfoldError(
                f"ConvTranspose: padding {self.padding!r} is not defined; give (low, high) pairs"
            )
        _set(self, "padding", padding(name, self.padding, axes))
        _check_groups(self)


Op: TypeAlias = Linear | Conv | ConvTranspose | Embedding
Chain: TypeAlias = tuple[Op, ...]
Convolution: TypeAlias = Conv | ConvTranspose


def is_op(value: object) -> TypeGuard[Op]:
    """Return whether a value is one of these layers."""
    return isinstance(value, (Linear, Conv, ConvTranspose, Embedding))


def layout(op: Op) -> tuple[object, ...]:
    """Return class, shapes and geometry of an op: all but its numbers, which pivots are, too."""
    shapes = [getattr(array, "shape", None) for array in (op.weight, op.bias)]
    numbers = ("weight", "bias", "pivots")
    others = (value for name, value in vars(op).items() if name not in numbers)
    return (type(op), *shapes, *others, pivots_of(op) is not None)


def pivots_of(op: Op) -> Pivots | None:
    """Return the pivots of an interpolative layer; None for any other."""
    return op.pivots if isinstance(op, (Linear, Conv)) else None


def geometry(op: Convolution) -> Geometry:
    """Return the geometry of a convolution, one value per axis."""
    return Geometry(
        kernel=tuple(op.weight.shape[2:]),
        stride=op.stride,  # type: ignore[arg-type]  # __post_init__ made it a tuple of int
        padding=op.padding,  # type: ignore[arg-type]  # and this pairs or a known string
        dilation=op.dilation,  # type: ignore[arg-type]
        output_padding=(
            op.output_padding  # type: ignore[arg-type]
            if isinstance(op, ConvTranspose)
            else (0,) * (op.weight.ndim - 2)
        ),
    )


def channels(op: Op) -> tuple[int, int]:
    """Return the numbers of (output, input) channels; of a table, (embedding_dim, rows)."""
    if isinstance(op, Embedding):
        return op.weight.shape[1], op.weight.shape[0]
    return op.weight.shape[0], op.weight.shape[1] * op.groups


def as_chain(ops: Op | Iterable[Op]) -> Chain:
    """Return an op or several as a chain."""
    return (ops,) if isinstance(ops, (Linear, Conv, ConvTranspose, Embedding)) else tuple(ops)


def _set(op: Op, name: str, value: object) -> None:
    object.__setattr__(op, name, value)


def _check_arrays(op: Op, ndim: tuple[int, ...]) -> None:
    name = type(op).__name__
    _set(op, "weight", taken(op.weight))
    if op.bias is not None:
        _set(op, "bias", taken(op.bias))
    weight, shape = op.weight, tuple(getattr(op.weight, "shape", ()))
    if not is_real(weight):
        kind = weight.dtype if isinstance(weight, np.ndarray) else type(weight).__name__
        raise RankfoldError(f"{name}: the weight is {kind}; give an array of a float dtype")
    if weight.ndim not in ndim:
        layout = {
            Linear: "(out, in/groups)",
            Embedding: "(num_embeddings, embedding_dim)",
        }.get(type(op), f"(out, in/groups, *kernel) with 1 to {_MAX_SPATIAL_AXES} kernel axes")
        raise RankfoldError(f"{name}: weight of shape {shape}; the layout is {layout}")
    bias = op.bias
    if bias is not None and (not is_real(bias) or tuple(bias.shape) != shape[:1]):
        actual = tuple(bias.shape) if hasattr(bias, "shape") else type(bias).__name__
        raise RankfoldError(f"{name}: bias is {actual}; a float array of {shape[:1]} fits")


def _check_groups(op: Linear | Convolution) -> None:
    if not is_int(op.groups) or op.groups < 1:
        raise RankfoldError(f"{type(op).__name__}: groups is {op.groups!r}; use an int from 1 on")
    _set(op, "groups", int(op.groups))
    if op.weight.shape[0] % op.groups:
        raise RankfoldError(
            f"{type(op).__name__}: {op.groups} groups do not divide {op.weight.shape[0]} outputs"
        )


def _check_pivots(op: Linear | Conv) -> None:
    if op.pivots is None:
        return
    name, (out, into) = type(op).__name__, op.weight.shape[:2]
    few, many = min(out, into), max(out, into)
    if op.groups > 1:
        raise RankfoldError(f"{name}: pivots with {op.groups} groups; use them without groups")
    if isinstance(op, Conv):
        geo = geometry(op)
        if (
            set(geo.kernel) != {1}
            or set(geo.stride) != {1}
            or set(geo.pads(geo.kernel)) != {(0, 0)}
        ):
            raise RankfoldError(
                f"{name}: pivots with kernel {geo.kernel}, stride {geo.stride} and padding "
                f"{geo.padding}; use a kernel of 1 without stride and padding"
            )
    pivots = tuple(op.pivots)
    ascending = all(low < high for low, high in itertools.pairwise(pivots))
    if (
        not all(map(is_int, pivots))
        or len(pivots) != few
        or not ascending
        or not (pivots[0] >= 0 and pivots[-1] < many)
    ):
        raise RankfoldError(
            f"{name}: {len(pivots)} pivots for a weight of shape {tuple(op.weight.shape)}; use "
            f"{few} ascending ints from 0 to {many - 1}"
        )
    _set(op, "pivots", tuple(map(int, pivots)))
    # Costs and stored weights rest on it. Blank weights have no values, and those on an accelerator
    # are not copied from it for a check.
    weight = op.weight
    if isinstance(weight, np.ndarray) and any(weight.strides):
        matrix = weight.reshape(out, into)
        block = matrix[list(pivots)] if out >= into else matrix[:, list(pivots)]
        if not np.array_equal(block, np.eye(few)):
            raise RankfoldError(
                f"{name}: the weight is not the identity at its pivots; use pivots=None for it"
            )
