"""Row interpolative decomposition: rows of a matrix that give all others with small coefficients.

A (m, r) = P [1; T] A_J with r rows J (Cheng, Gimbutas, Martinsson and Rokhlin, SIAM J. Sci. Comput.
26, 2005). QR with column pivoting of an orthonormal basis chooses J; swaps in the sense of strong
rank-revealing QR (Gu and Eisenstat, SIAM J. Sci. Comput. 17, 1996) bound the entries of T.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankfold.linalg.arrays import Array

_BOUND = 2.0
"""The largest magnitude of an entry of T. Gu and Eisenstat need a bound above 1 for swaps to end,
each of which raises |det A_J| by it at least. QR with column pivoting alone stayed below 1.3 on
bases of order 256 to 2048, random or of decaying rows, so that no swap was needed there."""


def row_interpolation(matrix: Array) -> tuple[tuple[int, ...], Array]:
    """Return pivot rows and T, by which the other rows are made of them.

    Args:
        matrix: (m, r) with m ≥ r, of NumPy. It may have dependent columns: J is chosen for a basis
            of r columns that contains their span, so that T is bounded all the same.

    Returns:
        J, ascending, and T (m − r, r) in float64 with entries of magnitude 2 at most, such that
        A[rest] = T A[J].
    """
    from scipy.linalg import qr  # here: importing rankfold loads no SciPy

    basis = _basis(matrix)
    rank = basis.shape[1]
    _, order = qr(basis.T, mode="r", pivoting=True, check_finite=False)
    chosen = swapped(basis, order[:rank])
    return tuple(map(int, chosen)), _solved(basis, chosen)


def coefficients(matrix: Array, pivots: Sequence[int]) -> Array:
    """Return T with A[rest] = T A[J], as `row_interpolation` does for the pivots that it chooses.

    Args:
        matrix: (m, r) with m ≥ r, of NumPy.
        pivots: J.

    Raises:
        numpy.linalg.LinAlgError: the rows J are dependent to half of the digits.
    """
    return _solved(_basis(matrix), pivots)


def _basis(matrix: Array) -> Array:
    # Columns of a trained factor differ by orders of magnitude. With A = Q R the coefficients are
    # those of Q, whose columns do not: T = Q_rest Q_J⁻¹, and rank-deficient A still has r of them.
    scale = float(abs(matrix).max()) if matrix.size else 0.0
    basis, _ = np.linalg.qr(np.asarray(matrix, dtype=np.float64) / (scale or 1.0))
    return basis


def _solved(basis: Array, pivots: Array | Sequence[int]) -> Array:
    rest = np.delete(np.arange(len(basis)), np.asarray(pivots))
    solved: Array = np.linalg.solve(basis[np.asarray(pivots)].T, basis[rest].T)
    # Whether a singular matrix has a pivot of exactly zero hangs on rounding; how T grows does not.
    if solved.size and not np.max(np.abs(solved)) < np.finfo(np.float64).eps ** -0.5:
        raise np.linalg.LinAlgError("Singular matrix")
    return np.ascontiguousarray(solved.T)


def swapped(basis: Array, pivots: Array | Sequence[int]) -> Array:
    """Return pivots, ascending, after swaps until no entry of T is above 2 in magnitude.

    Args:
        basis: (m, r).
        pivots: r rows of it that are independent.
    """
    pivots = np.array(pivots)
    rest = np.delete(np.arange(len(basis)), pivots)
    # With J → J' by exchanging the j-th pivot for row i of the rest, det A_J' = T_ij det A_J. So
    # the largest entry is exchanged while it is above the bound, and |det| grows geometrically.
    solved = np.linalg.solve(basis[pivots].T, basis[rest].T).T
    while solved.size:
        i, j = np.unravel_index(np.argmax(np.abs(solved)), solved.shape)
        largest = solved[i, j]
        if abs(largest) <= _BOUND:
            break
        # A = T A_J has row i as a pivot now: T ← T − t_j (t_i − e_j)ᵀ / T_ij, of rank one. Row i
        # holds what was the j-th pivot, e_j, in the new coefficients.
        difference = solved[i].copy()
        difference[j] -= 1.0
        unit = np.zeros(len(pivots))
        unit[j] = 1.0
        solved = solved - np.outer(solved[:, j] / largest, difference)
        solved[i] = unit - difference / largest
        rest[i], pivots[j] = pivots[j], rest[i]
    return np.sort(pivots)
