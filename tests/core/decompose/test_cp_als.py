from __future__ import annotations

import numpy as np
import pytest
from tests.benchmarks.exact_rank import FACTORS, exact

from rankfold.decompose.cp_als import MOST_SENSITIVE, fit
from rankfold.decompose.tensor_algebra import relative_sensitivity, sum_of_squares


@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((31, 17, 3, 2, 4), 19),
        ((47, 33, 3, 2, 4), 39),  # above the input channels, and too large for many starts
        ((90, 70, 3, 4), 75),
    ],
    ids=str,
)
def test_a_kernel_of_that_rank_is_recovered(shape: tuple[int, ...], rank: int, kind: str) -> None:
    tensor = exact(shape, rank, kind, 0)
    scaled = tensor / abs(tensor).max()
    assert fit(scaled, rank, np.random.default_rng(0)).error < 1e-5


def test_cp_of_a_border_rank_tensor_stays_bounded() -> None:
    a, b = np.eye(3)[0], np.eye(3)[1]
    tensor = sum(
        np.einsum("i,j,k->ijk", *(b if mode == one else a for mode in range(3))) for one in range(3)
    )
    found = fit(tensor, 2, np.random.default_rng(0))
    assert all(np.isfinite(f).all() for f in found.factors)
    assert sum_of_squares(found.factors) < 1e3 * np.vdot(tensor, tensor)


def test_terms_that_cancel_exactly_are_bounded_at_the_cost_of_some_error() -> None:
    rng = np.random.default_rng(0)
    tensor = np.zeros((12, 10, 3))
    for _ in range(2):
        near, step = ([rng.standard_normal(size) for size in tensor.shape] for _ in range(2))
        moved = [a + b / 1e3 for a, b in zip(near, step, strict=True)]
        tensor += 1e3 * (np.einsum("i,j,k", *moved) - np.einsum("i,j,k", *near))
    # Of the exact terms, a thousand times as large, the sensitivity is above a million.
    model = fit(tensor, 4, np.random.default_rng(0))
    assert relative_sensitivity(model.factors, float(np.vdot(tensor, tensor))) <= MOST_SENSITIVE
    assert model.error < 0.1
