"""One item per layer within limits: against brute force, and what happens when nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rankfold.knapsack import cheapest, least_share


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("resources", [1, 2, 3])
def test_the_choice_is_that_of_brute_force(seed: int, resources: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.uniform(0, 10.0 ** rng.integers(-4, 4), size=n) for n in (4, 3, 5, 2)]
    costs = [rng.integers(1, 100, size=(len(v), resources)).astype(float) for v in values]
    limits = rng.uniform(0.4, 1.0, resources) * np.sum([c.mean(axis=0) for c in costs], axis=0)
    every = [
        (sum(v[i] for v, i in zip(values, pick, strict=True)), pick)
        for pick in itertools.product(*map(range, map(len, values)))
        if (sum(c[i] for c, i in zip(costs, pick, strict=True)) <= limits).all()
    ]
    solution = cheapest(values, costs, limits)
    if not every:
        assert solution is None
        return
    assert solution is not None
    got = sum(v[i] for v, i in zip(values, solution.chosen, strict=True))
    assert got <= min(every)[0] * 1.002 + 1e-9
    spent = sum(c[i] for c, i in zip(costs, solution.chosen, strict=True))
    assert (spent <= limits).all()


def test_limits_are_kept_to_the_last_unit() -> None:
    values = [np.array([0.0, 1.0])] * 40
    costs = [np.array([[1e12 + 1.0], [1e12]])] * 40
    limits = np.array([40e12 + 7.0])
    solution = cheapest(values, costs, limits)
    assert solution is not None
    assert sum(c[i, 0] for c, i in zip(costs, solution.chosen, strict=True)) <= limits[0]


def test_two_hundred_layers_are_solved_and_the_gap_is_proven() -> None:
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.uniform(1, 1e6, (60, 1)), axis=0)[::-1] for _ in range(200)]
    values = [np.sort(rng.uniform(0, 1, 60)) for _ in range(200)]
    limits = np.array([0.3 * sum(c.max() for c in costs)])
    solution = cheapest(values, costs, limits)
    assert solution is not None
    assert solution.gap <= 1.1e-3


@pytest.mark.parametrize("resources", [1, 2])
def test_the_least_feasible_share_is_feasible_and_nothing_below(resources: int) -> None:
    rng = np.random.default_rng(3)
    costs = [rng.uniform(1, 50, (6, resources)) for _ in range(5)]
    limits = np.full(resources, 10.0)
    factor = least_share(costs, limits)
    values = [np.zeros(6)] * 5
    assert cheapest(values, costs, limits * factor * 1.0001) is not None
    assert cheapest(values, costs, limits * factor * 0.99) is None
