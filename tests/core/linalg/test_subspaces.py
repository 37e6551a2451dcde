"""Leading subspaces, and systems with a ridge."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold import linalg


@pytest.mark.parametrize("size", [40, 600])
@pytest.mark.parametrize("rank", [1, 25])
def test_an_approximate_basis_holds_as_much_as_the_exact_one(size: int, rank: int) -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((2, size, size)) * np.geomspace(1.0, 1e-3, size)
    gram = half @ half.mT
    basis = np.asarray(linalg.approximate_leading(gram, rank), dtype=np.float64)
    assert basis.shape == (2, size, rank)
    assert np.allclose(basis.mT @ basis, np.eye(rank), atol=1e-4)
    kept = np.einsum("gnr,gnm,gmr->g", basis, gram, basis)
    assert np.allclose(kept, linalg.eigenvalues(gram)[:, :rank].sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("size", [7, 97, 130, 400])
@pytest.mark.parametrize("count", [3, 120])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-3), (np.float64, 1e-9)])
def test_a_system_with_a_ridge_is_solved_by_halves_as_by_lapack(
    size: int, count: int, dtype: type, tolerance: float
) -> None:
    rng = np.random.default_rng(size)
    columns = rng.standard_normal((size, size)) * np.geomspace(1.0, 1e-3, size)
    system, right = columns.T @ columns, rng.standard_normal((count, size))
    ridge = 1e-3
    loaded = system + ridge * np.trace(system) / size * np.eye(size)
    expected = np.linalg.solve(loaded, right.T).T
    solution = linalg.ridge_solve(system.astype(dtype), right.astype(dtype), ridge)
    assert solution.dtype == dtype
    assert np.linalg.norm(solution - expected) < tolerance * np.linalg.norm(expected)


def test_a_system_that_rounding_made_indefinite_is_solved_all_the_same() -> None:
    size = 128
    system = np.diag(np.where(np.arange(size) == 100, -1.0, 2.0))
    right = np.random.default_rng(0).standard_normal((size, size))
    level = np.trace(system) / size
    expected = right / (np.diag(system) + 1e-3 * level)
    np.testing.assert_allclose(linalg.ridge_solve(system, right, 1e-3), expected, rtol=1e-12)
