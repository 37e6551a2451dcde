"""The vocabulary: layers as frozen dataclasses of arrays and geometry, and their costs.

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

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from rankfold.errors import RankfoldError
from rankfold.linalg.subspaces import host, is_real, taken, takes_no_memory
from rankfold.ops.geometry import Geometry, is_int, padding, per_axis

Array: TypeAlias = npt.NDArray[Any]
Extent: TypeAlias = tuple[int, ...]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_MAX_SPATIAL_AXES = 3


@dataclass(frozen=True, eq=False)
class Linear:
    """Fully connected layer y = x Wᵀ + b on the last axis.

    With groups W is block diagonal, as in a grouped convolution with a kernel of 1. That is also
    how a stack of layers of one shape is written, each on an input of its own.

    Args:
        weight: (out, in/groups).
        bias: (out,) or None.
        groups: the number of groups; divides both channel counts.

    Raises:
        RankfoldError: a shape or a value does not fit.
    """

    weight: Array
    bias: Array | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        _check_arrays(self, ndim=(2,))
        _check_groups(self)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Table look-up: index i gives row i of the weight.

    Args:
        weight: (num_embeddings, embedding_dim).

    Raises:
        RankfoldError: the weight is not a matrix of floating-point numbers.
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

    Raises:
        RankfoldError: a shape or a value does not fit.
    """

    weight: Array
    bias: Array | None = None
    stride: int | Sequence[int] = 1
    padding: int | str | Sequence[int] | Sequence[Sequence[int]] = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1
    padding_mode: str = "zeros"

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
    """Whether something is a layer of this vocabulary."""
    return isinstance(value, (Linear, Conv, ConvTranspose, Embedding))


def layout(op: Op) -> tuple[object, ...]:
    """All that an op is but its numbers: class, shapes and geometry."""
    shapes = [getattr(array, "shape", None) for array in (op.weight, op.bias)]
    arrays = ("weight", "bias")
    return (type(op), *shapes, *(v for name, v in vars(op).items() if name not in arrays))


def geometry(op: Convolution) -> Geometry:
    """The geometry of a convolution, typed: ops take ints as a convenience, this never has any."""
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
    """The numbers of (output, input) channels; of an `Embedding`, (embedding_dim, table rows)."""
    if isinstance(op, Embedding):
        return op.weight.shape[1], op.weight.shape[0]
    return op.weight.shape[0], op.weight.shape[1] * op.groups


def as_chain(ops: Op | Iterable[Op]) -> Chain:
    """One op or several, as a chain."""
    return (ops,) if isinstance(ops, (Linear, Conv, ConvTranspose, Embedding)) else tuple(ops)


def params(ops: Op | Iterable[Op]) -> int:
    """The number of parameters (weights and biases) of an op or a chain."""
    return sum(
        math.prod(op.weight.shape) + (0 if op.bias is None else op.bias.shape[0])
        for op in as_chain(ops)
    )


def output_extent(op: Op, extent: Extent) -> Extent:
    """The extent of an op's output for an input of that extent.

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
    """Multiply-accumulate operations of an op or a chain for one input of that extent.

    Biases and table look-ups cost none. Border positions count in full.
    """
    total = 0
    for op in as_chain(ops):
        out = output_extent(op, extent)
        if isinstance(op, (Linear, Conv)):
            total += math.prod(out) * math.prod(op.weight.shape)
        elif isinstance(op, ConvTranspose):
            total += math.prod(extent) * math.prod(op.weight.shape)
        extent = out
    return total


def describe(op: Op) -> str:
    """A short text for tables: class, channels, kernel and whatever differs from the default."""
    out, into = channels(op)
    if isinstance(op, Embedding):
        return f"Embedding {into}×{out}"
    text = f"{type(op).__name__} {into}→{out}"
    if isinstance(op, Linear):
        return f"{text} groups {op.groups}" if op.groups > 1 else text
    geo = geometry(op)
    text += " " + "×".join(map(str, geo.kernel))
    if set(geo.stride) != {1}:
        text += " stride " + "×".join(map(str, geo.stride))
    if set(geo.dilation) != {1}:
        text += " dilation " + "×".join(map(str, geo.dilation))
    if op.groups > 1:
        text += f" groups {op.groups}"
    return text


def grouped(op: Op) -> Array:
    """The weight as (groups, out/groups, in/groups, *kernel); an `Embedding` as (1, rows, dim)."""
    weight = op.weight
    return weight.reshape(op.groups, weight.shape[0] // op.groups, *weight.shape[1:])


def blank(*shape: int) -> Array:
    """An all-zero array that takes no memory, for an op of which only the shape is known."""
    return np.broadcast_to(np.zeros((), dtype=np.float32), shape)


def is_blank(op: Op) -> bool:
    """Whether only the shape of an op is known."""
    return takes_no_memory(op.weight)


def on_host(op: Op) -> Op:
    """The same layer with its arrays as NumPy's."""
    return mapped(op, host)


def mapped(op: Op, change: Callable[[Array], Array]) -> Op:
    """The same layer with other arrays in place of its own."""
    weight = change(op.weight)
    if isinstance(op, Embedding) or op.bias is None:
        return replace(op, weight=weight)
    return replace(op, weight=weight, bias=change(op.bias))


def with_weight(op: Op, weight: Array) -> Op:
    """The same layer with another weight of the same shape."""
    if weight.shape != op.weight.shape:
        raise RankfoldError(
            f"{type(op).__name__}: weight of shape {weight.shape} in place of {op.weight.shape}"
        )
    return replace(op, weight=weight)


def without_geometry(op: Op) -> Op:
    """The layer as the shape of its weight tells it: no stride, padding or dilation."""
    if isinstance(op, (Linear, Embedding)):
        return op
    return type(op)(op.weight, op.bias, groups=op.groups)


def of_groups(op: Op, groups: Sequence[int], total: int) -> Op:
    """What an op does in some of the groups of a layer.

    Args:
        op: the layer, or a stage of a chain in its place.
        groups: which.
        total: how many groups the layer has.
    """
    if isinstance(op, Embedding):
        raise RankfoldError("Embedding: a table has no groups")
    weight = by_group(op.weight, total)[list(groups)].reshape(-1, *op.weight.shape[1:])
    bias = None if op.bias is None else by_group(op.bias, total)[list(groups)].reshape(-1)
    return replace(op, weight=weight, bias=bias, groups=op.groups // total * len(groups))


def by_group(array: Array, total: int) -> Array:
    """A weight or a bias as (groups of the layer, ..., *rest)."""
    return array.reshape(total, -1, *array.shape[1:])


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
        found = tuple(bias.shape) if hasattr(bias, "shape") else type(bias).__name__
        raise RankfoldError(f"{name}: bias is {found}; a float array of {shape[:1]} fits")


def _check_groups(op: Linear | Convolution) -> None:
    if not is_int(op.groups) or op.groups < 1:
        raise RankfoldError(f"{type(op).__name__}: groups is {op.groups!r}; use an int from 1 on")
    _set(op, "groups", int(op.groups))
    if op.weight.shape[0] % op.groups:
        raise RankfoldError(
            f"{type(op).__name__}: {op.groups} groups do not divide {op.weight.shape[0]} outputs"
        )
