"""Cholesky factors of stacks of matrices, and systems with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rankfold.linalg.arrays import cast, is_finite, namespace

if TYPE_CHECKING:
    from rankfold.linalg.arrays import Array

_BLOCK = 64
"""Order of the blocks of a substitution: products of that width come near the speed of large ones.
"""


def cholesky(matrix: Array) -> Array:
    """Return the lower triangular L of stacks of positive definite L Lᵀ, by columns of blocks.

    Args:
        matrix: (groups, n, n).

    Raises:
        numpy.linalg.LinAlgError: it is not positive definite.
    """
    if not isinstance(matrix, np.ndarray):
        return factor_by_library(matrix)
    # NumPy's own is far from the speed of a matrix product, in float32 most of all. Here all but
    # the blocks on the diagonal and their inverses is products.
    lower = np.zeros_like(matrix)
    size = matrix.shape[-1]
    for start in range(0, size, _BLOCK):
        stop = min(size, start + _BLOCK)
        block, below = slice(start, stop), slice(stop, size)
        left = lower[:, start:, :start] @ lower[:, block, :start].mT
        panel = matrix[:, start:, block] - left
        diagonal = np.linalg.cholesky(panel[:, : stop - start])
        lower[:, block, block] = diagonal
        if stop < size:
            lower[:, below, block] = panel[:, stop - start :] @ np.linalg.inv(diagonal).mT
    return lower


def factor_by_library(matrix: Array) -> Array:
    """Return the Cholesky factor by the library of the matrix.

    Raises:
        numpy.linalg.LinAlgError: it is not positive definite.
    """
    try:
        lower: Array = namespace(matrix).linalg.cholesky(matrix)
    except RuntimeError as error:  # PyTorch's own class, which is one
        raise np.linalg.LinAlgError(str(error)) from None
    if not is_finite(lower):  # what JAX gives in place of an error
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    return lower


def solve_triangular(lower: Array, right: Array, *, transposed: bool = False) -> Array:
    """Return L⁻¹ R, or L^-ᵀ R, for stacks of lower triangular L, by substitution of blocks.

    Args:
        lower: L, (groups, n, n).
        right: R, (groups, n, m).
        transposed: solve with Lᵀ.
    """
    if not isinstance(lower, np.ndarray):
        solver = namespace(lower).linalg
        triangle, right = lower.mT if transposed else lower, cast(right, lower.dtype)
        if hasattr(solver, "solve_triangular"):  # beyond the standard; PyTorch has it
            return solver.solve_triangular(triangle, right, upper=transposed)
        return solver.solve(triangle, right)
    # A general solver factors L again, at the cube of its order. SciPy's triangular one has a BLAS
    # of its own, whose threads would spin against NumPy's. So all but the inverses of the blocks on
    # the diagonal is products.
    size = lower.shape[-1]
    solved = np.array(right, dtype=lower.dtype)
    starts = range(0, size, _BLOCK)
    for start in reversed(starts) if transposed else starts:
        block = slice(start, start + _BLOCK)
        diagonal = np.linalg.inv(lower[:, block, block])
        if transposed:
            rest = slice(start + _BLOCK, size)
            solved[:, block] -= lower[:, rest, block].mT @ solved[:, rest]
            diagonal = diagonal.mT
        else:
            solved[:, block] -= lower[:, block, :start] @ solved[:, :start]
        solved[:, block] = diagonal @ solved[:, block]
    return solved
