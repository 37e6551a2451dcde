from __future__ import annotations

import numpy as np
from tests.core.policies.layers import choose, layer, low_rank

import rankfold as rf
from rankfold.ops import Linear
from rankfold.policies.base import Choice


def test_vbmf_takes_the_rank_of_each_unfolding(rng: np.random.Generator) -> None:
    weight = low_rank(rng, 5, 47, 29, 3, 3)
    expected = tuple(
        rf.evbmf(np.moveaxis(weight, mode, 0).reshape(weight.shape[mode], -1)).rank
        for mode in (0, 1)
    )
    anchor = choose(rf.VBMF(), rf.Conv(weight), ("tucker2",))
    if min(expected):
        assert anchor.ranks == expected
    assert choose(rf.VBMF(), rf.Conv(weight), ("channel_svd",)).ranks == (expected[0],) == (5,)


def test_weaken_goes_from_the_evbmf_rank_to_the_full_rank(rng: np.random.Generator) -> None:
    op = rf.Linear(low_rank(rng, 5, 41, 400))
    ranks = [choose(rf.VBMF(weaken=w), op).ranks[0] for w in (0.0, 0.25, 0.5)]
    assert ranks == [5, 14, 23]


def test_vbmf_of_noise_leaves_the_layer_alone(rng: np.random.Generator) -> None:
    choice = choose(rf.VBMF(), rf.Linear(rng.standard_normal((41, 90))))
    assert choice == Choice(None, reason="rank 0: EVBMF found no structure above the noise")


def test_vbmf_with_known_noise(rng: np.random.Generator) -> None:
    op = rf.Linear(low_rank(rng, 5, 41, 400))
    assert choose(rf.VBMF(sigma2=1e-4), op).ranks == (5,)
    assert choose(rf.VBMF(sigma2=1e4), op).method is None


def test_groups_share_the_largest_of_their_ranks(rng: np.random.Generator) -> None:
    weight = np.concatenate([low_rank(rng, rank, 20, 60, 3) for rank in (2, 5)])
    assert choose(rf.VBMF(), rf.Conv(weight, groups=2), ("channel_svd",)).ranks == (5,)


def test_a_rank_of_few_rows_is_said_to_rest_on_them(rng: np.random.Generator) -> None:
    few = "EVBMF had 31 rows to go by: fewer than 32 say little of a rank"
    assert choose(rf.VBMF(), Linear(low_rank(rng, 3, 31, 400))).reason == few
    assert choose(rf.VBMF(), Linear(low_rank(rng, 3, 400, 31))).reason == few
    assert choose(rf.VBMF(), Linear(low_rank(rng, 3, 32, 400))).reason == ""
    noise = choose(rf.VBMF(), Linear(rng.standard_normal((31, 90))))
    assert noise.reason == f"rank 0: EVBMF found no structure above the noise; {few}"


def test_the_rank_is_recorded_where_the_noise_is_estimated(rng: np.random.Generator) -> None:
    for sigma2, recorded in ((None, [5]), (1e-4, [])):
        view = layer(Linear(low_rank(rng, 5, 41, 90)), ("svd",))
        list(rf.VBMF(sigma2=sigma2).allocate([view]))
        ranks = [record.evbmf for record in view.spectra.records if record.evbmf is not None]
        assert ranks == recorded
