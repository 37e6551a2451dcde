"""Starts of CP fits from singular vectors: of the slices of a tensor, and of its unfoldings."""

from __future__ import annotations

import math

import numpy as np

from rankfold import linalg
from rankfold.decompose.tensor_algebra import Fit, balance, unfold
from rankfold.linalg import Array

_SAMPLED = 96
"""Side of slices from which the eigenpairs of all of them take longer than two sweeps."""
_MOST_OF_A_SLICE = 2
"""Terms that are looked for in a slice, over those that it has on average."""


def from_singular_vectors(tensor: Array, rank: int, rng: np.random.Generator) -> tuple[Array, ...]:
    """Return the leading left singular vectors of every unfolding as the factors of a model.

    Args:
        tensor: (out, in, *kernel).
        rank: of the model.
        rng: draws the columns that a mode smaller than the rank has no singular vectors for.
    """
    factors: list[Array] = []
    for mode, size in enumerate(tensor.shape):
        factor = np.empty((size, rank))
        vectors = linalg.host(linalg.leading(unfold(tensor, mode)[None], min(rank, size))[0])
        factor[:, : vectors.shape[1]] = vectors
        # of norm one on average, as the singular vectors are
        drawn = rng.standard_normal((size, rank - vectors.shape[1]))
        factor[:, vectors.shape[1] :] = drawn / math.sqrt(size)
        factors.append(linalg.like(factor, tensor))
    return tuple(factors)


def from_slices(tensor: Array, rank: int, rng: np.random.Generator) -> Fit:
    """Take the leading rank-1 terms of the SVDs of all slices along the two largest modes.

    Terms of different slices have different unit vectors in the other modes, those of one slice
    different singular vectors: all are orthogonal. So the error is the energy of the terms left
    out, the largest terms are the best choice, and with all of them the model is exact. Where few
    terms of large slices are wanted these are sampled.
    """
    energy = linalg.inner(tensor, tensor)
    order = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    rows, columns = sorted(order[:2])
    rest = sorted(order[2:])
    slices = linalg.permuted(tensor, (*rest, rows, columns)).reshape(
        -1, tensor.shape[rows], tensor.shape[columns]
    )
    left, right = _singular_terms(slices, rank, rng)
    strengths = linalg.host((left * left).sum(axis=1) * (right * right).sum(axis=1))
    chosen = np.argsort(-strengths, axis=None, kind="stable")[:rank]
    which, column = np.unravel_index(chosen, strengths.shape)
    factors: list[Array] = [np.empty(0)] * tensor.ndim
    factors[rows] = left[which, :, column].mT
    factors[columns] = right[which, :, column].mT
    sizes = [tensor.shape[mode] for mode in rest]
    positions = np.unravel_index(which, sizes) if rest else ()
    for mode, position in zip(rest, positions, strict=True):
        factors[mode] = linalg.like(np.eye(tensor.shape[mode])[:, position], tensor)
    left_out = max(energy - float(strengths.ravel()[chosen].sum()), 0.0)
    return Fit(balance(tuple(factors)), math.sqrt(left_out / energy))


def _singular_terms(slices: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return A and B (slices, side, terms) of orthogonal columns with A Bᵀ near each slice.

    Args:
        slices: (slices, m, n).
        rank: how many terms are wanted of all slices together.
        rng: draws a sample.
    """
    side = min(slices.shape[1:])
    terms = _MOST_OF_A_SLICE * math.ceil(rank / len(slices))
    if side >= _SAMPLED and 2 * terms <= side:
        left, right = linalg.sampled(slices, terms, rng)
        return left, right.mT
    if slices.shape[1] <= slices.shape[2]:
        left = linalg.eigh(linalg.gram(slices)).vectors
        return left, slices.mT @ left
    right = linalg.eigh(linalg.gram(slices.mT)).vectors
    return slices @ right, right
