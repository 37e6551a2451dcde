"""Copies of a layer with other arrays, fewer groups or no values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array, selected, takes_no_memory
from rankfold.ops.types import Embedding, Linear, Op, channels, geometry, pivots_of


def describe(op: Op) -> str:
    """Describe an op for tables: class, channels, kernel and whatever differs from the default."""
    out, into = channels(op)
    if isinstance(op, Embedding):
        return f"Embedding {into}×{out}"
    text = f"{type(op).__name__} {into}→{out}"
    if pivots_of(op) is not None:
        text += " interpolative"
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
    """Reshape the weight to (groups, out/groups, in/groups, *kernel); a table to (1, rows, dim)."""
    weight = op.weight
    return weight.reshape(op.groups, weight.shape[0] // op.groups, *weight.shape[1:])


def blank(*shape: int) -> Array:
    """Return an all-zero array that takes no memory, for an op without values."""
    return np.broadcast_to(np.zeros((), dtype=np.float32), shape)


def is_blank(op: Op) -> bool:
    """Return whether an op has a shape but no values."""
    return takes_no_memory(op.weight)


def mapped(op: Op, change: Callable[[Array], Array]) -> Op:
    """Apply a function to the weight and the bias of a layer."""
    weight = change(op.weight)
    if isinstance(op, Embedding) or op.bias is None:
        return replace(op, weight=weight)
    return replace(op, weight=weight, bias=change(op.bias))


def with_weight(op: Op, weight: Array) -> Op:
    """Return the layer with another weight of the same shape."""
    if weight.shape != op.weight.shape:
        raise RankfoldError(
            f"{type(op).__name__}: weight of shape {weight.shape} in place of {op.weight.shape}"
        )
    return replace(op, weight=weight)


def without_geometry(op: Op) -> Op:
    """Return the layer without stride, padding and dilation."""
    if isinstance(op, (Linear, Embedding)):
        return op
    return type(op)(op.weight, op.bias, groups=op.groups)


def of_groups(op: Op, groups: Sequence[int], total: int) -> Op:
    """Restrict an op to some of the groups of a layer.

    Args:
        op: the layer, or a stage of a chain in its place.
        groups: which.
        total: how many groups the layer has.
    """
    if isinstance(op, Embedding):
        raise RankfoldError("Embedding: a table has no groups")
    weight = selected(by_group(op.weight, total), groups).reshape(-1, *op.weight.shape[1:])
    bias = None if op.bias is None else selected(by_group(op.bias, total), groups).reshape(-1)
    return replace(op, weight=weight, bias=bias, groups=op.groups // total * len(groups))


def by_group(array: Array, total: int) -> Array:
    """Reshape a weight or a bias to (groups of the layer, ..., *rest)."""
    return array.reshape(total, -1, *array.shape[1:])
