"""Algebra of CP models: unfoldings, Khatri-Rao products, norms and sensitivity.

A model of a tensor has a factor (size of the mode, rank) per mode; it stands for the sum over r of
the outer products of their columns r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.linalg import Array


def khatri_rao(factors: Sequence[Array]) -> Array:
    """Return the column-wise Kronecker product, (product of the sizes, rank)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None, :] * factor[None, :, :]).reshape(-1, factor.shape[1])
    return product


def hadamard(matrices: Sequence[Array]) -> Array:
    """Return the elementwise product of matrices of one shape."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product * matrix
    return product


def gram_product(factors: Sequence[Array]) -> Array:
    """Return the Gram matrix of the Khatri-Rao product, (rank, rank)."""
    return hadamard([f.mT @ f for f in factors])


def unfold(tensor: Array, mode: int) -> Array:
    """Unfold a tensor into a matrix, (size of the mode, everything else)."""
    axes = (mode, *(axis for axis in range(tensor.ndim) if axis != mode))
    return linalg.permuted(tensor, axes).reshape(tensor.shape[mode], -1)


def multiply(tensor: Array, matrix: Array, mode: int) -> Array:
    """Apply a matrix (n, size of the mode) to one mode of a tensor."""
    rest = [axis for axis in range(tensor.ndim) if axis != mode]
    product = matrix @ unfold(tensor, mode)
    product = product.reshape(matrix.shape[0], *(tensor.shape[axis] for axis in rest))
    order = [0] * tensor.ndim
    for index, axis in enumerate((mode, *rest)):
        order[axis] = index
    return linalg.permuted(product, tuple(order))


def mttkrp(tensor: Array, factors: Sequence[Array], mode: int) -> Array:
    """Multiply an unfolding by the Khatri-Rao product of the other factors, (size, rank)."""
    rest = [f for other, f in enumerate(factors) if other != mode]
    return unfold(tensor, mode) @ khatri_rao(rest)


def squares(factors: Sequence[Array]) -> Array:
    """Return the squared norms of the columns, (modes, rank), on the host in float64."""
    return np.stack([linalg.host((linalg.double(f) ** 2).sum(axis=0)) for f in factors])


def sum_of_squares(factors: Sequence[Array]) -> float:
    """Return Σ_r ‖a_r ∘ b_r ∘ ...‖², the summed squared norms of the rank-1 terms."""
    return float(np.prod(squares(factors), axis=0).sum())


def sensitivity(factors: Sequence[Array]) -> float:
    """Expected squared change of the tensor per unit variance of noise on every factor entry.

    Σ_n I_n Σ_r Π_{m≠n} ‖a_r⁽ᵐ⁾‖² (Phan et al., arXiv 2008.05441).
    """
    squared = squares(factors)
    return float(
        sum(
            factor.shape[0] * np.prod(np.delete(squared, mode, axis=0), axis=0).sum()
            for mode, factor in enumerate(factors)
        )
    )


def balance(factors: Sequence[Array]) -> tuple[Array, ...]:
    """Spread the norm of each rank-1 term evenly over its vectors; the model stays the same."""
    norms = np.sqrt(squares(factors))
    alive = norms.min(axis=0) > 0.0
    logs = np.log(np.where(alive, norms, 1.0))
    target = np.exp(logs.mean(axis=0))
    shares = np.where(alive, target / np.where(alive, norms, 1.0), 0.0)
    return tuple(
        linalg.double(factor) * linalg.like(share, factor)
        for factor, share in zip(factors, shares, strict=True)
    )


def relative_sensitivity(factors: Sequence[Array], energy: float) -> float:
    """Sensitivity without units: for noise relative to each factor, over the squared norm.

    Σ_n (‖A⁽ⁿ⁾‖²/R) Σ_r Π_{m≠n} ‖a_r⁽ᵐ⁾‖² / ‖T‖²: the expected squared relative change of the tensor
    per unit variance of noise whose size is that of the factor's entries. One per mode where the
    rank-1 terms are alike and do not cancel; large where they do.

    Args:
        factors: of the model.
        energy: ‖T‖².
    """
    squared = squares(factors)
    rank = squared.shape[1]
    terms = [
        norms.sum() / rank * np.prod(np.delete(squared, mode, axis=0), axis=0).sum()
        for mode, norms in enumerate(squared)
    ]
    return float(sum(terms)) / energy


@dataclass(frozen=True, eq=False)
class Fit:
    """CP model: a factor matrix (size of the mode, rank) per mode, and ‖T − T̂‖ / ‖T‖."""

    factors: tuple[Array, ...]
    error: float
