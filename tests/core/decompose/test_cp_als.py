from __future__ import annotations

import numpy as np
import pytest
from tests.benchmarks.exact_rank import FACTORS, exact

from rankfold.decompose.cp_als import fit
from rankfold.decompose.tensor_algebra import sum_of_squares


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
