"""Row interpolative decompositions: exact, with bounded coefficients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.linalg import coefficients, row_interpolation
from rankfold.linalg.interpolative import swapped


def kahan(size: int, angle: float = 1.2) -> np.ndarray:
    """An upper triangular matrix whose smallest singular value no diagonal element tells."""
    s, c = np.sin(angle), np.cos(angle)
    upper = np.triu(-c * np.ones((size, size)), 1) + np.eye(size)
    return np.diag(s ** np.arange(size)) @ upper


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**20), rows=st.integers(1, 23), columns=st.integers(1, 11))
def test_other_rows_are_bounded_combinations_of_the_pivots(
    seed: int, rows: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    columns = min(rows, columns)
    matrix = rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-6, 6, columns)
    pivots, stored = row_interpolation(matrix)
    assert list(pivots) == sorted(set(pivots))
    assert stored.shape == (rows - columns, columns)
    assert np.abs(stored).max(initial=0.0) <= 2.0
    rest = np.delete(matrix, pivots, axis=0)
    sizes = np.abs(matrix).max(axis=0)
    assert np.allclose(stored @ (matrix[list(pivots)] / sizes), rest / sizes, atol=1e-10)


def test_coefficients_of_dependent_columns_are_bounded() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((17, 3)) @ rng.standard_normal((3, 7))
    matrix[:, 5] = 0.0
    pivots, stored = row_interpolation(matrix)
    assert len(pivots) == 7
    assert np.abs(stored).max() <= 2.0
    assert np.allclose(stored @ matrix[list(pivots)], np.delete(matrix, pivots, axis=0))


def test_swaps_bound_the_coefficients_of_any_start() -> None:
    # Kahan matrices are nearly singular, so that their rows give others with large coefficients.
    size = 23
    square = kahan(size).T
    scaled = square / np.linalg.norm(square, 2)
    values, vectors = np.linalg.eigh(np.eye(size) - 0.9 * scaled.T @ scaled)
    basis = np.vstack([scaled, (vectors * np.sqrt(values)).T])
    assert np.abs(coefficients(basis, range(size))).max() > 20.0
    pivots = swapped(basis, range(size))
    assert len(set(pivots)) == size
    assert np.abs(coefficients(basis, pivots)).max() <= 2.0


def test_a_zero_matrix_has_pivots() -> None:
    pivots, stored = row_interpolation(np.zeros((5, 2)))
    assert len(pivots) == 2
    assert np.isfinite(stored).all()


def test_singular_pivots_are_an_error() -> None:
    matrix = np.vstack([np.ones((2, 2)), np.eye(2)])
    with pytest.raises(np.linalg.LinAlgError):
        coefficients(matrix, (0, 1))
