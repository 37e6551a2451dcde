"""All heavy linear algebra: Gram matrices, eigenpairs, leading subspaces.

Everything is float64 and works on a stack of matrices (the groups of a convolution) at once.
Singular values are read off Gram matrices: in float64 they are good to 1e-8 of the largest, and
because weights are *projected* on the orthonormal factors, W ≈ U(UᵀW), and never divided by a
singular value, a decomposition at full rank is exact in spite of the squared condition number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankfold.ops import Array


@dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenpairs of a stack of Gram matrices.

    Attributes:
        values: (groups, k), descending and not negative: squared singular values.
        vectors: (groups, n, k), the eigenvectors in columns; k is n, or less where the rest of the
            values is zero.
    """

    values: Array
    vectors: Array

    def leading(self, rank: int) -> Array:
        """The first `rank` eigenvectors of each group, (groups, n, rank)."""
        return self.vectors[..., :rank]


def gram(matrices: Array) -> Array:
    """A Aᵀ of each matrix of a stack: (groups, n, m) to (groups, n, n)."""
    product: Array = np.matmul(matrices, matrices.swapaxes(-1, -2))
    return product


def eigh(grams: Array) -> Eigen:
    """All eigenpairs of a stack of symmetric positive semi-definite matrices, descending."""
    values, vectors = np.linalg.eigh(grams)
    return Eigen(np.maximum(values[..., ::-1], 0.0), vectors[..., ::-1])


def left_eigen(matrices: Array) -> Eigen:
    """Eigenpairs of the Grams A Aᵀ, from those of Aᵀ A where these are smaller.

    Args:
        matrices: (groups, n, m).

    Returns:
        min(n, m) pairs. Of a tall matrix the vectors are an orthonormal basis of A V, found by QR:
        nothing is divided by a singular value.
    """
    if matrices.shape[-2] <= matrices.shape[-1]:
        return eigh(gram(matrices))
    right = eigh(gram(matrices.swapaxes(-1, -2)))
    basis, _ = np.linalg.qr(np.matmul(matrices, right.vectors))
    return Eigen(right.values, basis)


def leading(matrices: Array, rank: int) -> Array:
    """An orthonormal basis (groups, n, rank) of the leading left singular subspaces."""
    if rank > matrices.shape[-1]:
        return eigh(gram(matrices)).leading(rank)
    return left_eigen(matrices).leading(rank)


def ridge_solve(system: Array, right: Array, ridge: float) -> Array:
    """X with X (S + ridge·tr(S)/n·1) = R, for a positive semi-definite S.

    Args:
        system: S, (n, n).
        right: R, (m, n).
        ridge: relative to the mean eigenvalue of S.
    """
    n = len(system)
    level = np.trace(system) / n
    if level <= 0.0:
        return np.zeros_like(right)
    # not SciPy's Cholesky: its BLAS has a thread pool of its own, and the two pools spin
    solution: Array = np.linalg.solve(system + (ridge * level) * np.eye(n), right.T).T
    return solution
