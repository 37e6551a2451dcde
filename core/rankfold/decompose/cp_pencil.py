"""Start of CP from the generalised eigenvectors of two slices: exact for a tensor of that rank.

Slices of Σ_r a_r ∘ b_r ∘ c_r along its third mode are A diag(c) Bᵀ, so that the quotient of two of
them has the columns of A for eigenvectors (Leurgans, Ross and Abel, SIAM J. Matrix Anal. 14, 1993).
The two leading combinations of all slices serve as the pair (Sanchez and Kowalski, J. Chemometrics
4, 1990). Modes beyond three are first merged, and merged vectors are split into rank-1 terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from rankfold import linalg
from rankfold.decompose.tensor_algebra import gram_product, multiply, unfold
from rankfold.linalg import Array

_RIDGE = 1e-12
"""Relative: enough to solve where two terms are alike, and far below what a fit can see."""
_LEAST_INSIDE = 0.99
"""Of the energy within the leading subspace of the rows, hence a tenth of the error outside. With
as much noise as that, or with less, sweeps from slices ended as low as from here: on 4-way and
5-way tensors of exact rank 40 and 64 under 0.05 to 30 % of noise, from 3 % on."""
_MOST_DISAGREEMENT = 0.5
"""Of three combinations of slices, above which there is nothing to find. Measured on the same
tensors: up to 0.2 under noise of 0.05 %, up to 0.8 from 1 % on, where sweeps from slices end as
low; 0.70 to 0.73 for kernels of full rank."""
Modes: TypeAlias = tuple[int, ...]


def from_pencil(tensor: Array, rank: int, *, merge: bool) -> tuple[Array, ...] | None:
    """Return factors of a CP model, one per mode.

    Args:
        tensor: (out, in, *kernel), not all zero.
        rank: of the model.
        merge: whether modes of the kernel may join the output or the input even where the channels
            alone make matrices that are large enough: more slices may be had that way, at a higher
            cost. Ranks above the channels have need of it, and get it.

    Returns:
        Factor matrices (size of the mode, rank); None where the modes do not make matrices with
        both sides at least the rank and two slices or more, or the rows are far from that rank.
    """
    # For T = Σ_r a_r ∘ b_r ∘ c_r with independent a_r and independent b_r (rank ≤ both sides),
    # 1. the a_r span the leading left subspace L of the first unfolding, the b_r that of the
    #    second, R: Lᵀ X_k R = Ã diag(c_k) B̃ᵀ are square slices with invertible Ã = Lᵀ A, B̃ = Rᵀ B;
    # 2. two combinations of slices P = Ã D₁ B̃ᵀ and Q = Ã D₂ B̃ᵀ have Q P⁻¹ = Ã D₂ D₁⁻¹ Ã⁻¹:
    #    its eigenvectors are the columns of Ã, in any order and scale, wherever the quotients
    #    d₂/d₁ differ. The leading two left singular vectors of the third unfolding are the
    #    combinations with the most energy, so that P is as far from singular as can be hoped;
    # 3. Ã⁻¹ P = D₁ B̃ᵀ gives B, and least squares give C.
    # Nothing is iterated; noise is amplified by the condition of Ã.
    groups = _groups(tensor.shape, rank, merge)
    if groups is None:
        return None
    rows, columns, rest = groups
    sizes = [math.prod(tensor.shape[mode] for mode in modes) for modes in groups]
    merged = linalg.permuted(tensor, (*rows, *columns, *rest)).reshape(*sizes)
    left, inside = _compressed(merged, 0, rank)
    if linalg.inner(inside, inside) < _LEAST_INSIDE * linalg.inner(tensor, tensor):
        return None
    right, inside = _compressed(inside, 1, rank)
    slices = linalg.permuted(inside, (2, 0, 1))
    flat = slices.reshape(sizes[2], -1)
    count = min(3, sizes[2])
    combined = (linalg.leading(flat[None], count)[0].mT @ flat).reshape(count, rank, rank)
    first, second, *third = linalg.host(combined)
    if third and _disagreement(first, second, third[0]) > _MOST_DISAGREEMENT:
        return None
    a, b = _diagonalising(first, second)
    inner = [linalg.like(a, tensor), linalg.like(b, tensor)]
    # row k of the unfolding times the Khatri-Rao product, without that product: aᵀ X_k b
    product = (inner[0] * (slices @ inner[1])).sum(axis=1)
    c = linalg.ridge_solve(gram_product(inner), product, _RIDGE)
    factors: list[Array] = [c] * tensor.ndim
    outer = [
        factor if basis is None else basis @ factor
        for basis, factor in zip((left, right), inner, strict=True)
    ]
    for modes, factor in zip(groups, (*outer, c), strict=True):
        shape = [tensor.shape[mode] for mode in modes]
        for mode, part in zip(modes, _split(linalg.host(factor), shape), strict=True):
            factors[mode] = linalg.like(part, tensor)
    return tuple(factors)


def _compressed(tensor: Array, mode: int, rank: int) -> tuple[Array | None, Array]:
    """Return a basis of the leading subspace of a mode and the tensor in it; none for all of it."""
    if rank == tensor.shape[mode]:
        return None, tensor
    basis = linalg.leading(unfold(tensor, mode)[None], rank)[0]
    return basis, multiply(tensor, basis.mT, mode)


def _groups(shape: tuple[int, ...], rank: int, merge: bool) -> tuple[Modes, Modes, Modes] | None:
    """Return the modes of rows, columns and slices of the merged tensor.

    Output and input channels are a row and a column mode; every kernel mode may be a slice mode, or
    join one of them. Of the groupings whose rows and columns are at least the rank, that with the
    most slices tells terms apart best.
    """
    best: tuple[Modes, Modes, Modes] | None = None
    most = 1
    kernel = range(2, len(shape))
    merge = merge or rank > min(shape[:2])
    for sides in itertools.product((2, 0, 1) if merge else (2,), repeat=len(kernel)):
        rows, columns, rest = (
            (*lead, *(mode for mode, side in zip(kernel, sides, strict=True) if side == group))
            for group, lead in enumerate(((0,), (1,), ()))
        )
        slices = math.prod(shape[mode] for mode in rest)
        fits = all(math.prod(shape[m] for m in modes) >= rank for modes in (rows, columns))
        if fits and slices > most:
            best, most = (rows, columns, rest), slices
    return best


def _disagreement(first: Array, second: Array, third: Array) -> float:
    """Return how far three matrices are from A diag(d) Bᵀ with the same A and B.

    Q P⁻¹ R = R P⁻¹ Q where they are: 0. For three that have nothing in common the two products are
    as good as orthogonal: 1 / √2. It takes a tenth of the time of the eigenvectors.
    """
    try:
        middle = np.linalg.solve(first, np.concatenate([third, second], axis=1))
    except np.linalg.LinAlgError:
        return 0.0
    one_way, other_way = second @ middle[:, : len(first)], third @ middle[:, len(first) :]
    norms = np.linalg.norm(one_way) + np.linalg.norm(other_way)
    return float(np.linalg.norm(one_way - other_way) / norms) if norms > 0.0 else 0.0


def _diagonalising(first: Array, second: Array) -> tuple[Array, Array]:
    """Return A and B with A diag(d) Bᵀ near both matrices, the columns of B of norm 1.

    A tensor that is not of the rank may have complex eigenvectors, in conjugate pairs x ± iy: their
    real and imaginary part x and y, which span what the two span, take their place.

    Args:
        first: (rank, rank), the one with more energy, which is inverted.
        second: (rank, rank).
    """
    values, vectors = np.linalg.eig(second @ np.linalg.pinv(first))
    a = np.where(values.imag < 0.0, vectors.imag, vectors.real)
    b: Array = (np.linalg.pinv(a) @ first).T
    lengths = np.linalg.norm(b, axis=0)
    return a, b / np.where(lengths > 0.0, lengths, 1.0)


def _split(factor: Array, shape: Sequence[int]) -> list[Array]:
    """Split the factor of merged modes into factors of each, by HOSVD of its columns.

    A column of a merged factor is a tensor of those modes, and of rank 1 for an exact model; the
    leading left singular vectors of its unfoldings and their product with it make the rank-1 term.

    Args:
        factor: (product of the sizes, rank).
        shape: the sizes of the modes.
    """
    if len(shape) == 1:
        return [factor]
    parts: list[Array] = []
    columns = factor.T.reshape(-1, *shape)
    strength = columns
    for mode, size in enumerate(shape):
        unfolded = np.moveaxis(columns, mode + 1, 1).reshape(len(columns), size, -1)
        vectors = np.linalg.svd(unfolded, full_matrices=False)[0][:, :, 0]
        parts.append(vectors.T)
        strength = np.einsum("rn...,rn->r...", strength, vectors)
    parts[0] = parts[0] * strength
    return parts
