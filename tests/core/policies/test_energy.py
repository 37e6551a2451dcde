from __future__ import annotations

import numpy as np
import pytest
from tests.core.policies.layers import choose

import rankfold as rf
from rankfold.ops import Conv
from rankfold.policies.energy import energy_rank


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_energy_takes_the_least_rank_that_keeps_the_share(
    share: float, rng: np.random.Generator
) -> None:
    weight = rng.standard_normal((31, 400)) * (1.0 + np.arange(31))[:, None] ** -1.5
    (rank,) = choose(rf.Energy(share), rf.Linear(weight)).ranks
    kept = np.cumsum(np.linalg.svd(weight, compute_uv=False) ** 2)
    assert kept[rank - 1] >= share * kept[-1] * (1 - 1e-9)
    assert rank == 1 or kept[rank - 2] < share * kept[-1]


def test_the_rank_of_a_share_is_the_first_that_holds_it() -> None:
    squares = np.array([16.0, 9.0, 1.0, 0.0])
    assert [energy_rank(squares, share) for share in (0.1, 16 / 26, 0.62, 25 / 26, 0.99)] == [
        1,
        1,
        2,
        2,
        3,
    ]


def test_all_of_the_energy_takes_no_rank_of_nothing() -> None:
    # What rounding leaves of singular values that are zero moves the last digit of the sum.
    squares = np.array([1.0, 1.0, 5e-16, 5e-16])
    assert np.cumsum(squares)[-1] > 2.0
    assert energy_rank(squares, 1.0) == 2


def test_the_energy_of_groups_is_that_of_all(rng: np.random.Generator) -> None:
    strong, weak = rng.standard_normal((20, 60, 3)), 1e-3 * rng.standard_normal((20, 60, 3))
    strong[5:] = 0.0
    grouped = Conv(np.concatenate([strong, weak]), groups=2)
    assert choose(rf.Energy(0.9999), grouped, ("channel_svd",)).ranks == (5,)
