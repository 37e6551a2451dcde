"""Interpolative layers: matrices with an identity among their rows or columns.

A tall matrix A (m, r) with the identity in its rows J is A = P [1; T], where P puts the rows of 1
to J and those of T (m − r, r) to the others. The layer y = A z passes z on as y_J, computes T z for
the rest, and costs r (m − r) in place of r m. A wide matrix is the transpose of such a one:
z = x_J + T x_rest. A square one is a permutation, with an empty T.

`Linear` and `Conv` hold the whole matrix as their weight, so that all that looks at weights need
not know of pivots; what stores and multiplies goes by T and by `gather_order`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array, host, like, selected
from rankfold.ops.types import Chain, Conv, Linear, Op, Pivots, pivots_of


def is_tall(op: Op) -> bool:
    """Return whether the identity of an interpolative layer lies in rows, not in columns."""
    return bool(op.weight.shape[0] >= op.weight.shape[1])


def stored_weight(op: Op) -> Array:
    """Return what is stored of a weight: T of an interpolative layer, else all of it.

    T has the axes of the weight: (out − in, in, ...) or (out, in − out, ...).
    """
    pivots = pivots_of(op)
    if pivots is None:
        return op.weight
    rest = others(pivots, max(op.weight.shape[:2]))
    if is_tall(op):
        return selected(op.weight, rest)
    return selected(op.weight.swapaxes(0, 1), rest).swapaxes(0, 1)


def with_stored_weight(stored: Array, pivots: Sequence[int], *, tall: bool) -> Array:
    """Return the whole weight, of the dtype of T: what undoes `stored_weight`.

    Args:
        stored: T, (m − r, r, ...) for a tall layer and (r, n − r, ...) for a wide one.
        pivots: of the layer, r of them.
        tall: as `is_tall` tells it, which the shape of T does not.

    Raises:
        RankfoldError: there are more or fewer pivots than T has columns (rows).
    """
    rank, other, stored = len(pivots), stored, host(stored)
    if stored.shape[1 if tall else 0] != rank:
        raise RankfoldError(f"{rank} pivots do not fit a stored weight of shape {stored.shape}")
    size = stored.shape[0 if tall else 1] + rank
    index: list[int] = others(pivots, size)
    weight = np.zeros((size, rank) if tall else (rank, size), stored.dtype)
    matrix = stored.reshape(stored.shape[:2])
    if tall:
        weight[list(pivots)], weight[index] = np.eye(rank), matrix
    else:
        weight[:, list(pivots)], weight[:, index] = np.eye(rank), matrix
    return like(weight.reshape(*weight.shape, *stored.shape[2:]), other)


def gather_order(op: Op) -> list[int]:
    """Return the order in which an interpolative layer gathers its channels.

    Of a tall one y = (z, T z)[order]; of a wide one z = x'_first + T x'_rest with x' = x[order] and
    its first r channels.
    """
    pivots = pivots_of(op)
    assert pivots is not None
    size = max(op.weight.shape[:2])
    order = [*pivots, *others(pivots, size)]
    if not is_tall(op):
        return order
    inverse = [0] * size
    for position, channel in enumerate(order):
        inverse[channel] = position
    return inverse


def pivots_in(order: Sequence[int], rank: int, *, tall: bool) -> Pivots:
    """Return the pivots that a gather order is of: what undoes `gather_order`."""
    if not tall:
        return tuple(map(int, order[:rank]))
    return tuple(channel for channel, position in enumerate(order) if position < rank)


def others(pivots: Sequence[int], size: int) -> list[int]:
    """Return the indices below a size that are no pivots, ascending."""
    chosen = set(pivots)
    return [index for index in range(size) if index not in chosen]


def without_pivots(chain: Chain) -> Chain:
    """Return a chain of ordinary layers with the same weights."""
    return tuple(
        replace(stage, pivots=None) if isinstance(stage, (Linear, Conv)) else stage
        for stage in chain
    )


def pivots_of_chain(chain: Chain) -> tuple[Pivots, ...]:
    """Return the pivots of the interpolative stages of a chain, in their order."""
    return tuple(pivots for stage in chain if (pivots := pivots_of(stage)) is not None)
