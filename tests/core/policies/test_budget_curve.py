"""The trade-off curve of a budget lies on the optima of the knapsack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import rankfold as rf
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.ops import Linear
from rankfold.pipeline.session import settings_of
from rankfold.policies.budget_curve import tradeoff


def layers(seed: int = 0) -> list[Layer]:
    rng = np.random.default_rng(seed)
    shapes = ((48, 64), (40, 96), (56, 32))
    ops = [Linear(rng.standard_normal(shape) * np.geomspace(1, 0.01, shape[1])) for shape in shapes]
    return [
        Layer((str(index),), lambda op=op: op, settings_of(("svd",), "balanced", 0))
        for index, op in enumerate(ops)
    ]


def test_the_curve_falls_from_the_original_and_the_plan_lies_on_it() -> None:
    allocation = rf.Budget(params=0.4).allocate_model(LayerGroup.of(layers()))
    curve = allocation.tradeoff
    assert curve is not None
    assert (curve.resource, curve.measure) == ("params", "error")
    assert curve.points[0] == (1.0, 0.0)
    shares, losses = map(np.array, zip(*curve.points, strict=True))
    assert (np.diff(shares) < 0).all()
    assert (np.diff(losses) > 0).all()
    share, loss = curve.plan
    assert share <= 0.4
    assert loss == pytest.approx(np.interp(share, shares[::-1], losses[::-1]), rel=0.05)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_no_choice_within_the_same_cost_loses_less(share: float) -> None:
    group = LayerGroup.of(layers(1))
    offers = [[None, *layer.offers()] for layer in group]
    curve = tradeoff(group, offers, [0, 0, 0])
    assert curve is not None
    shares, losses = map(np.array, zip(*curve.points, strict=True))
    rng = np.random.default_rng(0)
    total = group.original_cost.params
    for _ in range(3000):
        picked = [items[rng.integers(len(items))] for items in offers]
        costs = [
            layer.costs.before.params if offer is None else offer.cost.params
            for offer, layer in zip(picked, group, strict=True)
        ]
        loss = np.sqrt(sum(offer.loss for offer in picked if offer is not None) / 3)
        least = np.interp(sum(costs) / total, shares[::-1], losses[::-1] ** 2) ** 0.5
        # Points are rounded to four digits, and thinned on a convex curve, which lifts it.
        assert loss >= least * (1 - 0.02) - 1e-3


def test_offers_that_cost_more_are_no_part_of_it() -> None:
    group = LayerGroup.of(layers(2))
    offers = [[None, *layer.offers()] for layer in group]
    dearer = [
        [*items, replace(items[1], cost=group.original_cost, loss=items[1].loss / 2)]
        for items in offers
    ]
    assert tradeoff(group, dearer, [0, 0, 0]) == tradeoff(group, offers, [0, 0, 0])


def test_what_lies_outside_of_the_layers_counts() -> None:
    group = LayerGroup.of(layers())
    twice = group.original_cost + group.original_cost
    within = LayerGroup(group.layers, group.original_cost, twice)
    rest = rf.Budget(params=0.9).allocate_model(within)
    assert rest.tradeoff is not None
    assert rest.tradeoff.points[-1][0] > 0.5


def test_a_group_without_offers_has_no_curve() -> None:
    group = LayerGroup.of(layers())
    assert tradeoff(group, [[None]] * 3, [0, 0, 0]) is None
