from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rankfold as rf
from rankfold.errors import Infeasible, RankfoldError
from rankfold.policies.base import Outcome
from rankfold.policies.budget_search import TRIALS, cheapest_good_enough, fast_enough, score_of


def outcome(model: Any, latency: float | None = None) -> Outcome:
    return Outcome(model, rf.Plan(layers=(), latency=latency), {})


def search(score: Any, drop: float, most: float = 1.0) -> Outcome:
    """Search among models that are the shares themselves; the original is 1."""
    return cheapest_good_enough(1.0, outcome, score, drop, most, "params")


@pytest.mark.parametrize("least", [0.031, 0.27, 0.88])
def test_the_smallest_good_share_is_known_to_two_percent(least: float) -> None:
    kept = search(lambda share: 1.0 if share >= least else 0.0, 0.5)
    assert least <= kept.model <= 1.025 * least
    trials = kept.plan.trials
    assert (trials[0].share, trials[0].kept) == (1.0, True)
    assert len(trials) <= TRIALS + 1
    assert all(trial.kept == (trial.share >= least) for trial in trials)


def test_a_share_that_cannot_be_is_followed_by_one_that_can() -> None:
    asked: list[float] = []

    def attempt(share: float) -> Outcome:
        asked.append(share)
        if share < 0.4:
            raise Infeasible("too little", 0.4 / share)
        return outcome(share)

    kept = cheapest_good_enough(1.0, attempt, lambda share: 1.0, 0.5, 1.0, "params")
    assert 0.4 <= kept.model <= 1.025 * 0.4
    assert [share < 0.4 for share in asked].count(True) == 1


def test_where_only_the_largest_share_is_good_it_is_tried() -> None:
    assert search(lambda share: 1.0 if share >= 0.7 else 0.0, 0.5, most=0.7).model == 0.7


def test_where_none_is_good_the_best_score_is_named() -> None:
    message = r"drop=0.5.*scores 0.3, the original 1; allow a larger drop"
    with pytest.raises(RankfoldError, match=message):
        search(lambda share: 1.0 if share == 1.0 else 0.3, 0.5, most=0.7)


def test_a_limit_on_the_time_is_tightened_by_what_it_was_missed_by() -> None:
    asked: list[float] = []

    def attempt(share: float) -> Outcome:
        asked.append(share)
        return outcome(share, latency=1.25 * share)

    kept = fast_enough(attempt, 0.5)
    assert kept.plan.latency is not None
    assert 0.45 < kept.plan.latency <= 0.5
    assert len(asked) == 2
    assert kept.plan.notes == ()


def test_a_time_that_is_never_met_gives_the_fastest_with_a_note() -> None:
    times = iter([0.9, 0.7, 0.8, 0.75])
    kept = fast_enough(lambda share: outcome(share, latency=next(times)), 0.5)
    assert kept.plan.latency == 0.7
    assert kept.plan.notes == ("the measured time is above the budget of 50.0%",)


def test_a_time_that_is_not_measured_is_taken_as_predicted() -> None:
    assert fast_enough(outcome, 0.5).model == 0.5


def test_a_score_is_a_finite_number_or_an_error_that_names_who_asks() -> None:
    assert score_of(lambda model: np.float32(2.0), None) == 2.0
    with pytest.raises(RankfoldError, match=r"me: evaluate fails with ZeroDivisionError"):
        score_of(lambda model: 1 / 0, None, "me")
    with pytest.raises(RankfoldError, match="Budget: evaluate gave nan"):
        score_of(lambda model: float("nan"), None)
