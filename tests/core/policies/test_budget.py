from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.core.policies.layers import layer, low_rank

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.ops import Embedding, Linear
from rankfold.policies.base import Outcome


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no limit"),
        ({"params": 0}, "params 0"),
        ({"macs": 1.5}, r"macs 1\.5"),
        ({"params": True}, "params True"),
        ({"params": "0.5"}, r"params '0\.5'"),
        ({"params": float("nan")}, "params nan"),
        ({"params": 0.5, "multiple_of": 0}, "multiple_of 0"),
        ({"drop": 0.1}, "go together"),
        ({"drop": 0.1, "evaluate": 3}, "evaluate 3"),
        ({"drop": 0.1, "error": 0.1, "evaluate": print}, "exclude each other"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(rf.RankfoldError, match=message):
        rf.Budget(**arguments)


def test_a_budget_is_shown_by_its_limits() -> None:
    assert repr(rf.Budget(macs=0.5, multiple_of=8)) == "Budget(macs=0.5, multiple_of=8)"
    shown = repr(rf.Budget(drop=0.1, evaluate=len, distil_steps=5))
    assert shown == "Budget(drop=0.1, evaluate=len, distil_steps=5)"


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        ({"params": 0.5}, True),
        ({"latency": 0.5}, True),
        ({"macs": 0.5}, False),
        ({"error": 0.5}, False),
    ],
)
def test_interpolation_is_for_parameters_and_measured_times(
    limits: dict[str, Any], allowed: bool
) -> None:
    assert rf.Budget(**limits).allows_interpolation is allowed


def test_layers_get_the_least_loss_within_the_parameters(rng: np.random.Generator) -> None:
    views = [layer(Linear(low_rank(rng, rank, 41, 67))) for rank in (3, 11)]
    first, second = rf.Budget(params=0.6).allocate(views)
    spent = sum(
        view.template_cost("svd", choice.ranks).params
        for view, choice in zip(views, (first, second), strict=True)
    )
    assert spent <= 0.6 * 2 * 41 * 67
    assert first.ranks[0] >= 3
    assert second.ranks[0] >= 11


def test_what_needs_more_than_layers_says_so(rng: np.random.Generator) -> None:
    untraced = [layer(Linear(rng.standard_normal((13, 11))))]
    with pytest.raises(RankfoldError, match=r"macs= needs example inputs; pass inputs="):
        list(rf.Budget(macs=0.5).allocate(untraced))
    with pytest.raises(RankfoldError, match=r"drop= tries out models; use rankfold.compress"):
        list(rf.Budget(drop=0.1, evaluate=len).allocate(untraced))
    table = [layer(Embedding(rng.standard_normal((13, 11))), extents=[(2,)])]
    with pytest.raises(RankfoldError, match="macs= has nothing to limit"):
        list(rf.Budget(macs=0.5).allocate(table))


def test_a_search_within_a_drop_asks_for_shares_of_the_resource_alone() -> None:
    budgets: list[rf.Budget] = []

    def attempt(policy: Any) -> Outcome:
        budgets.append(policy)
        return Outcome(policy.macs, rf.Plan(layers=()), {})

    budget = rf.Budget(params=0.7, drop=0.2, evaluate=lambda model: model)
    outcome = budget.search(1.0, attempt, "macs")
    assert outcome.model >= 0.8
    assert outcome.model < 0.85
    assert all(b.params == 0.7 and b.drop is b.evaluate is None for b in budgets)
