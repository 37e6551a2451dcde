"""Stages of chains, their geometry, and the scale that is spread over them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankfold import linalg
from rankfold.decompose.base import Placement, RankTuple, Unfolding
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import (
    Chain,
    Conv,
    Convolution,
    ConvTranspose,
    Embedding,
    Op,
    geometry,
    with_weight,
)


def pointwise(op: Convolution, weight: Array, bias: Array | None = None) -> Conv:
    """Build a 1×1 convolution with the groups of `op`.

    Args:
        op: the layer that is decomposed.
        weight: (groups, out/groups, in/groups).
        bias: (out,) or None.
    """
    groups, out, into = weight.shape
    kernel = (1,) * (op.weight.ndim - 2)
    return Conv(weight=weight.reshape(groups * out, into, *kernel), bias=bias, groups=groups)


def along(
    op: Convolution, axes: tuple[int, ...], weight: Array, groups: int, bias: Array | None = None
) -> Convolution:
    """Build a convolution with the geometry of `op` along some axes and none elsewhere.

    Args:
        op: the layer that is decomposed.
        axes: the spatial axes whose kernel, stride, padding and dilation this stage takes.
        weight: (out, in/groups, *kernel), with kernel 1 along the other axes.
        groups: of this stage.
        bias: (out,) or None.
    """
    geo = geometry(op)
    every = range(geo.axes)
    padding = geo.padding
    if not isinstance(padding, str):
        padding = tuple(padding[a] if a in axes else (0, 0) for a in every)
    stage = replace(
        op,
        weight=weight,
        bias=bias,
        groups=groups,
        stride=tuple(geo.stride[a] if a in axes else 1 for a in every),
        dilation=tuple(geo.dilation[a] if a in axes else 1 for a in every),
        padding=padding,
    )
    if isinstance(stage, ConvTranspose):
        extra = tuple(geo.output_padding[a] if a in axes else 0 for a in every)
        stage = replace(stage, output_padding=extra)
    return stage


def trivial(op: Convolution, axis: int) -> bool:
    """Return whether nothing happens along an axis: kernel 1, stride 1, no padding."""
    geo = geometry(op)
    unpadded = isinstance(geo.padding, str) or geo.padding[axis] == (0, 0)
    return (
        geo.kernel[axis] == 1
        and geo.stride[axis] == 1
        and unpadded
        and geo.output_padding[axis] == 0
    )


def channel_unfoldings(spectrum: Spectrum) -> tuple[Unfolding, Unfolding]:
    """Return the output and the input unfolding of a kernel."""
    _, out, into, positions = spectrum.tensor.shape

    def outputs() -> Array:
        if positions == 1 and out > into:  # the input unfolding is this one transposed
            return spectrum.values("input")
        return spectrum.values("output")[:, : into * positions]

    def inputs() -> Array:
        if positions == 1 and out <= into:
            return spectrum.values("output")
        return spectrum.values("input")[:, : out * positions]

    return (
        Unfolding(
            outputs, (out, into * positions), out, spectrum.scale, spectrum.name_of("output")
        ),
        Unfolding(inputs, (into, out * positions), into, spectrum.scale, spectrum.name_of("input")),
    )


def cast(chain: Chain, op: Op) -> Chain:
    """Convert a chain to the dtype of the layer that it replaces, and copy its biases.

    Raises:
        RankfoldError: a stage exceeds the range of that dtype.
    """
    dtype = op.weight.dtype
    with np.errstate(over="ignore"):
        weights = [linalg.contiguous(linalg.cast(stage.weight, dtype)) for stage in chain]
    if not all(map(linalg.is_finite, weights)):
        raise RankfoldError(
            f"{type(op).__name__}: a stage of the chain exceeds the range of {dtype}; use the "
            "placement 'balanced' or a wider dtype"
        )
    stages = (replace(s, weight=weight) for s, weight in zip(chain, weights, strict=True))
    return tuple(
        stage
        if isinstance(stage, Embedding) or stage.bias is None
        else replace(stage, bias=linalg.copied(stage.bias))
        for stage in stages
    )


def refilled(stage: Op, values: Array) -> Op:
    """Return a stage with other values for its weight, in C order and in its dtype."""
    weight = linalg.cast(values.reshape(stage.weight.shape), stage.weight.dtype)
    return with_weight(stage, linalg.contiguous(weight))


def place_scale(
    applied_first: Array, applied_last: Array, scale: float, placement: Placement
) -> tuple[Array, Array]:
    """Spread the singular values and the weight's scale over the two factors of a matrix.

    Args:
        applied_first: (groups, r, n), the factor that meets the input.
        applied_last: (groups, m, r).
        scale: multiplies the product.
        placement: "balanced" gives both factors of each component the same norm; "classical"
            leaves the last factor orthonormal and puts everything into the first.
    """
    first = linalg.host(linalg.norms(applied_first, 2))[:, :, 0]
    last = linalg.host(linalg.norms(applied_last, 1))[:, 0, :]
    product = first * last * scale
    first_target, last_target = (
        (np.sqrt(product), np.sqrt(product))
        if placement == "balanced"
        else (product, np.ones_like(product))
    )
    alive = product > 0.0
    first_by = np.where(alive, first_target / np.where(alive, first, 1.0), 0.0)
    last_by = np.where(alive, last_target / np.where(alive, last, 1.0), 0.0)
    return (
        applied_first * linalg.like(first_by[:, :, None], applied_first),
        applied_last * linalg.like(last_by[:, None, :], applied_last),
    )


def check_ranks(
    name: str, op: Op, ranks: RankTuple, maximum: RankTuple, labels: tuple[str, ...]
) -> RankTuple:
    """Check that ranks are ints between 1 and their maximum, and return them.

    Args:
        name: of the method.
        op: the layer.
        ranks: to check.
        maximum: of each rank.
        labels: what limits each rank, for the error text.

    Raises:
        RankfoldError: a rank is not; the text names it, its maximum and what limits it.
    """
    if len(ranks) != len(maximum):
        raise RankfoldError(
            f"{name}: {len(ranks)} ranks {ranks}; {type(op).__name__} takes {len(maximum)}"
        )
    for rank, most, label in zip(ranks, maximum, labels, strict=True):
        if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
            raise RankfoldError(f"{name}: rank {rank!r} is not an int")
        if rank < 1:
            raise RankfoldError(f"{name}: rank {rank}; use at least 1")
        if rank > most:
            raise RankfoldError(f"{name}: rank {rank} exceeds {most} {label}; use at most {most}")
    return tuple(int(rank) for rank in ranks)
