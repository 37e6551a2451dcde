from __future__ import annotations

import numpy as np
from tests.core.policies.layers import choose

import rankfold as rf
from rankfold.ops import Conv, Linear
from rankfold.policies.base import Choice


def test_ratio_takes_a_share_of_each_channel_count(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((47, 29, 3, 3)))
    assert choose(rf.Ratio(1 / 3), op, ("tucker2",)) == Choice("tucker2", (15, 9))
    assert choose(rf.Ratio(1 / 3), op, ("channel_svd",)).ranks == (15,)
    assert choose(rf.Ratio(1 / 3), op, ("cp",)).ranks == (15,)
    assert choose(rf.Ratio(1e-6), op, ("tucker2",)).ranks == (1, 1)


def test_a_share_that_is_a_whole_number_is_not_rounded_down(rng: np.random.Generator) -> None:
    # 0.29 · 100 is 28.999999999999996 as a float.
    op = Linear(rng.standard_normal((100, 500)))
    assert choose(rf.Ratio(0.29), op).ranks == (29,)


def test_no_rank_exceeds_the_matrix(rng: np.random.Generator) -> None:
    op = Conv(rng.standard_normal((60, 2, 3)))
    assert choose(rf.Ratio(0.5), op, ("channel_svd",)).ranks == ()
    assert choose(rf.Ratio(1 / 15), op, ("channel_svd",)).ranks == (4,)
