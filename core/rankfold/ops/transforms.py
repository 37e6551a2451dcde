"""The same layer with other arrays, fewer groups or no values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array, host, takes_no_memory
from rankfold.ops.types import Embedding, Linear, Op, channels, geometry


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
