"""The factor of an updated identity is the Cholesky factor of that matrix."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.linalg import UpdatedIdentity


@pytest.mark.parametrize("rows", [1, 128, 300])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_solves_as_the_dense_factor_does(rows: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    z = scale * rng.standard_normal((2, rows, 7))
    lower = np.linalg.cholesky(z @ z.mT + np.eye(rows))
    right = rng.standard_normal((2, rows, 3))
    update = UpdatedIdentity(z)
    np.testing.assert_allclose(update.solve(right), np.linalg.solve(lower, right), atol=1e-5)
    np.testing.assert_allclose(
        update.solve(right, transposed=True), np.linalg.solve(lower.mT, right), atol=1e-5
    )


@pytest.mark.parametrize("count", [1, 100, 128, 200])
def test_fewer_rows_are_solved_with_the_leading_block(count: int) -> None:
    rng = np.random.default_rng(0)
    z, right = rng.standard_normal((1, 300, 5)), rng.standard_normal((1, 300, 2))[:, :count]
    lower = np.linalg.cholesky(z @ z.mT + np.eye(300))[:, :count, :count]
    solved = UpdatedIdentity(z).solve(right, transposed=True)
    np.testing.assert_allclose(solved, np.linalg.solve(lower.mT, right), atol=1e-9)
