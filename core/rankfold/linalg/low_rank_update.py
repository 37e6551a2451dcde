"""Cholesky factor of the identity plus a matrix of low rank, without a matrix of its order."""

from __future__ import annotations

from typing import NamedTuple

from rankfold.linalg.arrays import Array, namespace
from rankfold.linalg.stacks import concatenated, identity, product
from rankfold.linalg.triangular import cholesky, solve_triangular

_BLOCK = 128
"""Rows at a time: the inverses of order k and the factors of this order then cost about as much as
the products, for the k of 128 that is met most."""


class _Block(NamedTuple):
    rows: Array
    lower: Array
    gain: Array


class UpdatedIdentity:
    """The lower triangular L of L Lᵀ = 1 + Z Zᵀ, in O(m k) memory and O(m k²) time.

    Leading blocks of L are the factors of fewer rows of Z, as those of any Cholesky factor.

    Args:
        rows: Z, (groups, m, k), in float64.
    """

    def __init__(self, rows: Array) -> None:
        # The block i of L below the diagonal is Z_i K_j for a column j, with S_j the inverse of
        # 1 + Σ_{i<j} Z_iᵀ Z_i, D_j the factor of 1 + Z_j S_j Z_jᵀ and K_j = S_j Z_jᵀ D_j^-ᵀ: the
        # recursion of a Kalman filter (Woodbury's identity, block by block). S_j is inverted anew
        # each time; subtracting K_j K_jᵀ from it would lose its positive eigenvalues to rounding.
        self._blocks: list[_Block] = []
        xp = namespace(rows)
        information = identity(rows.shape[2], rows)[None]
        for start in range(0, rows.shape[1], _BLOCK):
            block = rows[:, start : start + _BLOCK]
            weighted = product(block, xp.linalg.inv(information))
            lower = cholesky(product(weighted, block.mT) + identity(block.shape[1], rows))
            self._blocks.append(_Block(block, lower, solve_triangular(lower, weighted)))
            information = information + product(block.mT, block)

    def solve(self, right: Array, *, transposed: bool = False) -> Array:
        """Return L⁻¹ R, or L^-ᵀ R, for the leading rows and columns of L.

        Args:
            right: R, (groups, n, columns), n at most m.
            transposed: solve with Lᵀ.
        """
        blocks = self._blocks[: -(-right.shape[1] // _BLOCK)]
        # All that a block needs of those before it, or behind it, is (groups, k, columns).
        carried = product(blocks[0].rows[:, :1].mT, 0.0 * right[:, :1])
        solved: list[Array] = []
        for index in reversed(range(len(blocks))) if transposed else range(len(blocks)):
            start = index * _BLOCK
            part = right[:, start : start + _BLOCK]
            size = part.shape[1]
            rows, lower, gain = blocks[index]
            rows, lower, gain = rows[:, :size], lower[:, :size, :size], gain[:, :size]
            before, after = (gain, rows) if transposed else (rows, gain)
            solution = solve_triangular(
                lower, part - product(before, carried), transposed=transposed
            )
            carried = carried + product(after.mT, solution)
            solved.append(solution)
        return concatenated(solved[::-1] if transposed else solved, 1)
