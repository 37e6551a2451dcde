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
