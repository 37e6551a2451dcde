"""The problem of a budget: choices keep its limits, and errors name what can be kept."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.errors import Infeasible
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.ops import Cost, Linear
from rankfold.pipeline.session import settings_of
from rankfold.policies.budget_problem import BudgetProblem, Limits


def group(elsewhere: int = 0) -> LayerGroup:
    rng = np.random.default_rng(0)
    settings = settings_of(("svd",), "balanced", 0)
    ops = [Linear(rng.standard_normal(shape)) for shape in ((48, 64), (40, 96), (56, 32))]
    layers = tuple(
        Layer((str(index),), lambda op=op: op, settings)  # type: ignore[misc]  # a default binds it
        for index, op in enumerate(ops)
    )
    cost = sum((layer.costs.before for layer in layers), Cost(elsewhere, 0))
    return LayerGroup(layers, Cost(elsewhere, 0), cost)


def limits(params: float | None, error: float | None = None, multiple_of: int = 1) -> Limits:
    return Limits(params, None, None, error, multiple_of)


@pytest.mark.parametrize("multiple_of", [1, 3])
@pytest.mark.parametrize("elsewhere", [0, 2000])
def test_the_ranks_keep_the_limit_with_what_is_elsewhere(elsewhere: int, multiple_of: int) -> None:
    layers = group(elsewhere)
    problem = BudgetProblem(limits(0.6, multiple_of=multiple_of), layers)
    ranks = problem.raised(problem.solved())
    spent = elsewhere + sum(
        layer.template_cost("svd", ranks[index]).params
        if index in ranks
        else layer.costs.before.params
        for index, layer in enumerate(layers)
    )
    assert spent <= 0.6 * layers.original_cost.params
    assert all(rank % multiple_of == 0 for (rank,) in ranks.values())


def test_a_limit_below_what_is_elsewhere_names_the_smallest_share() -> None:
    problem = BudgetProblem(limits(0.1), group(elsewhere=5000))
    with pytest.raises(Infeasible, match=r"Budget\(params=0.1\) cannot be kept") as caught:
        problem.solved()
    BudgetProblem(limits(0.1 * caught.value.factor * (1 + 1e-9)), group(5000)).solved()


def test_within_a_loss_no_rank_is_raised() -> None:
    problem = BudgetProblem(limits(None, error=0.5), group())
    solution = problem.solved()
    offered = {
        layer: items[index].ranks  # type: ignore[union-attr]  # None is the layer as it is
        for layer, (items, index) in enumerate(zip(problem.offers, solution.chosen, strict=True))
        if index
    }
    assert problem.raised(solution) == offered
