"""One item per layer within limits: against brute force, and what happens when nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rankfold.policies import knapsack
from rankfold.policies.knapsack import cheapest, least_share


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
    costs = [np.sort(rng.uniform(1, 1e6, (20, 1)), axis=0)[::-1] for _ in range(200)]
    values = [np.sort(rng.uniform(0, 1, 20)) for _ in range(200)]
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


def test_equal_layers_share_a_budget_without_being_told_apart() -> None:
    rng = np.random.default_rng(1)
    value, cost = np.sort(rng.uniform(0, 1, 37)), np.sort(rng.uniform(1, 9, (37, 1)), axis=0)[::-1]
    values, costs = [value] * 96, [cost] * 96
    solution = cheapest(values, costs, np.array([96 * 4.321]))
    assert solution is not None
    assert solution.gap <= 1e-3
    assert sum(cost[item, 0] for item in solution.chosen) <= 96 * 4.321


def test_where_the_search_ends_early_the_choice_is_within_its_proven_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    costs = [np.sort(rng.uniform(1, 100, (23, 1)), axis=0)[::-1] for _ in range(31)]
    values = [np.sort(rng.uniform(0, 1, 23)) for _ in range(31)]
    limits = np.array([0.4 * sum(c.max() for c in costs)])
    best = cheapest(values, costs, limits)
    solved = knapsack._Problem.solved

    def unfinished(self, scale, limits, *, integral):  # type: ignore[no-untyped-def]  # a stand-in
        result = solved(self, scale, limits, integral=integral)
        if integral:
            result.x, result.status = None, 4
        return result

    monkeypatch.setattr(knapsack._Problem, "solved", unfinished)
    fallen_back = cheapest(values, costs, limits)
    assert best is not None
    assert fallen_back is not None

    def total(chosen: tuple[int, ...]) -> float:
        return float(sum(v[i] for v, i in zip(values, chosen, strict=True)))

    assert sum(c[i, 0] for c, i in zip(costs, fallen_back.chosen, strict=True)) <= limits[0]
    assert total(best.chosen) <= total(fallen_back.chosen) * (1 + 1e-3)
    assert total(fallen_back.chosen) <= total(best.chosen) * (1 + fallen_back.gap + 1e-9)
    assert fallen_back.gap < 0.1


def test_no_clock_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    seen: list[dict[str, object]] = []
    milp = scipy.optimize.milp

    def noted(*args: object, **kwargs: object) -> object:
        seen.append(dict(kwargs["options"]))  # type: ignore[call-overload]  # a dict
        return milp(*args, **kwargs)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(scipy.optimize, "milp", noted)
    values, costs = [np.array([0.0, 1.0])] * 3, [np.array([[2.0, 3.0], [1.0, 2.0]])] * 3
    cheapest(values, costs, np.array([5.0, 9.0]))
    least_share(costs, np.array([5.0, 1.0]))
    assert len(seen) >= 2
    assert all("node_limit" in options and "time_limit" not in options for options in seen)
