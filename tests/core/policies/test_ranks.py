from __future__ import annotations

import numpy as np
import pytest
from tests.core.policies.layers import choose, layer

import rankfold as rf
from rankfold.ops import Conv, Linear
from rankfold.policies.base import Choice


def test_ranks_are_obeyed_even_where_the_layer_grows(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((13, 11, 3, 3)))
    assert choose(rf.Ranks((5, 7)), op).ranks == (5, 7)
    assert choose(rf.Ranks(6), op).ranks == (6, 6)
    full = choose(rf.Ranks("full"), op)
    assert full.ranks == (13, 11)
    assert full.reason.startswith("grew: parameters")


def test_ranks_may_be_integers_of_numpy(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((13, 11, 3, 3)))
    settings = [np.int64(6), (np.int32(5), np.uint8(7)), {"x": np.int64(6), "*": (np.int64(3),)}]
    for ranks, plain in zip(settings, [6, (5, 7), {"x": 6, "*": (3,)}], strict=True):
        assert repr(rf.Ranks(ranks)) == repr(rf.Ranks(plain))
        assert choose(rf.Ranks(ranks), op) == choose(rf.Ranks(plain), op)
        assert all(type(rank) is int for rank in choose(rf.Ranks(ranks), op).ranks)


def test_ranks_by_pattern(rng: np.random.Generator) -> None:
    op = rf.Linear(rng.standard_normal((13, 11)))
    assert choose(rf.Ranks({"x": 3, "*": 4}), op).ranks == (3,)
    with pytest.raises(rf.RankfoldError, match="pattern 'y' matches no layer; the layers are x"):
        choose(rf.Ranks({"y": 3}), op)


def test_a_rank_beyond_the_maximum_is_an_error_by_pattern_and_a_reason_for_all(
    rng: np.random.Generator,
) -> None:
    op = rf.Conv(rng.standard_normal((70, 64, 3, 3)))
    message = "rank 70 exceeds 64 input channels; use at most 64"
    assert message in choose(rf.Ranks((20, 70)), op).reason
    with pytest.raises(rf.RankfoldError, match=f"layer 'x': tucker2: {message}"):
        choose(rf.Ranks({"x": (20, 70)}), op)


@pytest.mark.parametrize("ranks", [0, -3, True, 2.5, "most", (), (3, 0), {"a": 0}, None])
def test_ranks_that_are_none_are_refused(ranks: object) -> None:
    with pytest.raises(rf.RankfoldError, match="Ranks"):
        rf.Ranks(ranks)


def test_a_layer_that_no_pattern_matches_is_left_alone(rng: np.random.Generator) -> None:
    views = [layer(Linear(rng.standard_normal((13, 11)))) for _ in range(2)]
    views[1].paths = ("y", "tied.y")
    for pattern in ("x", "[x]"):
        first, second = rf.Ranks({pattern: 3}).allocate(views)
        assert first == Choice("svd", (3,))
        assert second == Choice(None, reason="no pattern of Ranks matches it")
    assert [c.ranks for c in rf.Ranks({"tied.*": 4, "*": 3}).allocate(views)] == [(3,), (4,)]


def test_the_first_method_that_takes_that_many_ranks_is_taken(rng: np.random.Generator) -> None:
    op = Conv(rng.standard_normal((13, 11, 3, 3)))
    assert choose(rf.Ranks((6,)), op).method == "spatial_svd"
    assert choose(rf.Ranks((6, 5)), op).method == "tucker2"
    assert "channel_svd does not take the ranks (1, 2, 3)" in choose(rf.Ranks((1, 2, 3)), op).reason
