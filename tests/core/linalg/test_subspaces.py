"""Triangular systems."""

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
