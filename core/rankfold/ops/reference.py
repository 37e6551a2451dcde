"""Forward pass of an op or a chain in float64, and the dense weight of a chain.

This is the ground truth that every backend is checked against; it is written to be read, not to
be fast. It computes where the weights live. Layout: channels first, (batch, channels, *spatial);
features last for a `Linear`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from rankfold import linalg
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops.cost import output_extent
from rankfold.ops.transforms import grouped, with_weight
from rankfold.ops.types import Chain, Conv, ConvTranspose, Embedding, Linear, Op, as_chain, geometry

_NUMPY_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def forward(ops: Op | Iterable[Op], x: Array) -> Array:
    """Compute the output of an op or of a chain.

    Args:
        ops: an op or a chain of ops.
        x: (..., in) for a `Linear`, any integer array for an `Embedding`, (batch, in, *spatial)
            for a convolution.

    Returns:
        float64 array with the channel axis in the same place, of the library of the weights.

    Raises:
        RankfoldError: the input is too small for a kernel.
    """
    x = linalg.taken(x)
    for op in as_chain(ops):
        if isinstance(op, Embedding):
            x = linalg.double(op.weight)[linalg.like(x, op.weight)]
        else:
            x = linalg.double(linalg.like(x, op.weight))
            if isinstance(op, Linear):
                x = _linear(op, x)
            elif isinstance(op, Conv):
                x = _conv(op, x)
            else:
                x = _conv_transpose(op, x)
            if op.bias is not None:
                shape = (-1,) if isinstance(op, Linear) else (-1,) + (1,) * (x.ndim - 2)
                x = x + linalg.double(linalg.like(op.bias, x)).reshape(shape)
    return x


def _linear(op: Linear, x: Array) -> Array:
    rows = x.reshape(-1, op.groups, op.weight.shape[1]).swapaxes(0, 1)
    y: Array = rows @ linalg.double(grouped(op)).mT
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], len(op.weight))


def _conv(op: Conv, x: Array) -> Array:
    geo = geometry(op)
    spatial = output_extent(op, (x.shape[0], *x.shape[2:]))[1:]
    pads = ((0, 0), (0, 0), *geo.pads(x.shape[2:]))
    mode: Any = _NUMPY_PAD[op.padding_mode]
    x = linalg.like(np.pad(linalg.host(x), pads, mode=mode), x)
    x = x.reshape(x.shape[0], op.groups, -1, *x.shape[2:])
    weight = linalg.double(grouped(op))
    y = linalg.like(np.zeros((x.shape[0], op.groups, weight.shape[1], *spatial)), weight)
    einsum = linalg.namespace(weight).einsum
    for tap in np.ndindex(*geo.kernel):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, geo.dilation, spatial, geo.stride, strict=True)
        )
        y += einsum("goi,bgi...->bgo...", weight[:, :, :, *tap], x[:, :, :, *window])
    return y.reshape(y.shape[0], -1, *spatial)


def _conv_transpose(op: ConvTranspose, x: Array) -> Array:
    geo = geometry(op)
    spatial = output_extent(op, (x.shape[0], *x.shape[2:]))[1:]
    pads = geo.pads(x.shape[2:])
    full = [n + low + high for n, (low, high) in zip(spatial, pads, strict=True)]
    batch, _, *sizes = x.shape
    x = x.reshape(batch, op.groups, -1, *sizes)
    weight = linalg.double(grouped(op))
    y = linalg.like(np.zeros((batch, op.groups, weight.shape[1], *full)), weight)
    einsum = linalg.namespace(weight).einsum
    for tap in np.ndindex(*geo.kernel):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, geo.dilation, sizes, geo.stride, strict=True)
        )
        part = einsum("goi,bgi...->bgo...", weight[:, :, :, *tap], x)
        y = linalg.added_at(y, (slice(None), slice(None), slice(None), *window), part)
    crop = tuple(slice(low, low + n) for (low, _), n in zip(pads, spatial, strict=True))
    return y.reshape(batch, -1, *full)[:, :, *crop]


def reconstruct(
    op: Op, chain: Iterable[Op], precision: Callable[[Array], Array] = linalg.double
) -> Array:
    """Multiply a chain made from `op` out to a dense weight in the layout of `op.weight`.

    Args:
        op: the layer the chain replaces; only its class, groups and weight shape are read.
        chain: stages of which at most one has a kernel longer than 1 along each spatial axis, each
            with a multiple of `op.groups` groups.
        precision: converts the weights to the dtype to compute in, float64 if not given.

    Returns:
        Array of that dtype, of the shape of `op.weight`.

    Raises:
        RankfoldError: the stages do not compose to that shape.
    """
    stages = as_chain(chain)
    if isinstance(op, Embedding):
        table = precision(stages[0].weight)
        for stage in stages[1:]:
            table = table @ precision(stage.weight).mT
        return _of_shape(op, stages, table)
    kernel = op.weight.ndim - 2
    total = _stage_weight(stages[0], op.groups, kernel, precision)
    for stage in stages[1:]:
        split = stage.groups // op.groups
        following = _stage_weight(stage, stage.groups, kernel, precision)
        following = following.reshape(op.groups, split, *following.shape[1:])
        previous = total.reshape(op.groups, split, -1, *total.shape[2:])
        total = _compose(previous, following, kernel)
    return _of_shape(op, stages, total.reshape(-1, *total.shape[2:]))


def _stage_weight(
    stage: Op, groups: int, kernel: int, precision: Callable[[Array], Array]
) -> Array:
    weight = precision(stage.weight)
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    return weight.reshape(*weight.shape, *(1,) * (kernel - (weight.ndim - 3)))


def _compose(previous: Array, following: Array, kernel: int) -> Array:
    """Compose weights (g, s, mid, in, *k) and (g, s, out, mid, *k) to (g, s·out, in, *k)."""
    lengths = []
    for axis in range(-kernel, 0):
        a, b = previous.shape[axis], following.shape[axis]
        if a > 1 and b > 1:
            raise RankfoldError("two stages of a chain have a kernel along the same axis")
        lengths.append(a * b)
    g, s, mid, into = previous.shape[:4]
    out = following.shape[2]
    left = previous.reshape(g, s, mid, -1)
    right = linalg.permuted(following.reshape(g, s, out, mid, -1), (0, 1, 4, 2, 3))
    product: Array = right.reshape(g, s, -1, mid) @ left
    product = product.reshape(g, s, *following.shape[4:], out, into, *previous.shape[4:])
    order = [0, 1, 2 + kernel, 3 + kernel]
    order += itertools.chain.from_iterable((2 + a, 4 + kernel + a) for a in range(kernel))
    return linalg.permuted(product, tuple(order)).reshape(g, s * out, into, *lengths)


def composed(op: Op, chain: Chain) -> Op:
    """Return the layer with the dense weight and the bias of a chain made from it.

    Raises:
        RankfoldError: the stages do not compose to its shape.
    """
    dense = with_weight(op, linalg.cast(reconstruct(op, chain), op.weight.dtype))
    return dense if isinstance(dense, Embedding) else replace(dense, bias=chain[-1].bias)


def _of_shape(op: Op, stages: Chain, weight: Array) -> Array:
    if weight.shape != op.weight.shape:
        raise RankfoldError(
            f"{type(op).__name__}: a chain of {len(stages)} stages stands for a weight of shape "
            f"{weight.shape} in place of {op.weight.shape}"
        )
    return weight


def relative_distance(weight: Array, other: Array) -> float:
    """Return ‖W − W'‖ / ‖W‖ in float64, at any scale; in NumPy without a copy of either."""
    scale = max(float(abs(weight).max()), float(abs(other).max()))
    squared = total = 0.0
    # Row by row in a memory that is short; on an accelerator each row would be a round trip.
    pairs = zip(weight, other, strict=True) if isinstance(weight, np.ndarray) else [(weight, other)]
    for row, other_row in pairs:
        scaled = linalg.over(row, scale)
        difference = scaled - other_row / scale
        squared += linalg.inner(difference, difference)
        total += linalg.inner(scaled, scaled)
    return math.sqrt(squared / total)
