"""Triangular systems and factors."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold import linalg


@pytest.mark.parametrize("size", [1, 7, 128, 300])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_triangular_system_is_solved_by_blocks(size: int, transposed: bool) -> None:
    rng = np.random.default_rng(size)
    lower = np.tril(rng.standard_normal((2, size, size))) + size * np.eye(size)
    right = rng.standard_normal((2, size, 5))
    before = right.copy()
    solved = linalg.solve_triangular(lower, right, transposed=transposed)
    assert np.array_equal(right, before)
    assert np.allclose((lower.mT if transposed else lower) @ solved, right, atol=1e-10)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_cholesky_factor_is_that_of_numpy(size: int, dtype: type) -> None:
    columns = np.random.default_rng(0).standard_normal((3, size, 2 * size))
    matrix = (columns @ columns.mT).astype(dtype)
    lower = linalg.cholesky(matrix)
    assert lower.dtype == dtype
    expected = np.linalg.cholesky(matrix.astype(np.float64))
    np.testing.assert_allclose(lower, expected, atol=1e4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("at", [0, 100, 199])
def test_a_matrix_that_is_not_definite_has_no_cholesky_factor(at: int) -> None:
    matrix = np.eye(200)[None].copy()
    matrix[0, at, at] = -1.0
    with pytest.raises(np.linalg.LinAlgError):
        linalg.cholesky(matrix)


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
