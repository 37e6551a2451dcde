from __future__ import annotations

import numpy as np
import pytest

from rankfold.layers.candidates import Offer, spread, undominated
from rankfold.ops import Cost


def offer(params: int, macs: int, loss: float, method: str = "svd") -> Offer:
    return Offer(method, (1,), Cost(params, macs), loss)


def test_offers_are_kept_that_no_other_beats_in_all_three() -> None:
    best = [offer(9, 9, 0.1), offer(5, 9, 0.2), offer(9, 5, 0.2), offer(5, 5, 0.3)]
    beaten = [offer(9, 9, 0.15), offer(6, 9, 0.25), offer(5, 6, 0.3)]
    kept = undominated([*beaten, *reversed(best)])
    assert set(kept) == set(best)
    assert [o.loss for o in kept] == sorted(o.loss for o in kept)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_out_is_beaten_by_what_is_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    offers = [offer(*map(int, rng.integers(1, 9, 2)), float(rng.integers(1, 6))) for _ in range(40)]
    kept = undominated(offers)
    for item in offers:
        better = [k for k in kept if k.loss <= item.loss and k.cost.within(item.cost)]
        assert better == [item] if item in kept else better


def test_of_equal_offers_the_first_is_kept() -> None:
    assert undominated([offer(5, 5, 0.1, "first"), offer(5, 5, 0.1, "second")])[0].method == "first"


def test_a_few_of_many_offers_go_from_end_to_end() -> None:
    offers = [offer(50 - i, 50 - i, float(i)) for i in range(41)]
    few = spread(offers, 5)
    assert [o.loss for o in few] == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert spread(offers[:3], 5) == offers[:3]
