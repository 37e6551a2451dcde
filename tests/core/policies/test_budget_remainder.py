"""What is left of a budget is used, rank by rank, and never more than that."""

from __future__ import annotations

import numpy as np
import pytest

import rankfold as rf
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import rows_of
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Conv, Linear, Op
from rankfold.plugins.registry import registry
from rankfold.policies.budget_remainder import Rungs, raised

RNG = np.random.default_rng(6)
OPS: dict[str, list[Op]] = {
    "svd": [Linear(RNG.standard_normal((131, 67)))],
    "spatial_svd": [Conv(RNG.standard_normal((34, 17, 5, 3)))],
    "channel_svd": [Conv(RNG.standard_normal((93, 11, 3)))],
    "tucker2": [Conv(RNG.standard_normal((41, 37, 3, 2)))],
    "svd of two": [Linear(RNG.standard_normal((151, 97))), Linear(RNG.standard_normal((97, 151)))],
    "tucker2 of a matrix": [Conv(RNG.standard_normal((89, 71, 1, 1)))],
}


def moments_of(op: Op) -> LayerMoments:
    groups, out, size = rows_of(op).shape
    half, grads = RNG.standard_normal((groups, size, size)), RNG.standard_normal((groups, out, out))
    inputs = half @ half.swapaxes(1, 2)
    return LayerMoments(inputs, inputs[:, 0] * 0.0, grads @ grads.swapaxes(1, 2), 900, 3.0)


def layers_of(name: str, *, data: bool) -> list[Layer]:
    settings = Settings(registry().methods((name.split()[0],)), "balanced", 0)
    return [
        Layer(
            (str(index),),
            lambda op=op: op,  # type: ignore[misc]  # a default argument binds it
            settings,
            Usage([(1,) if op.weight.ndim == 2 else (1, *(9,) * (op.weight.ndim - 2))]),
            moments_of(op) if data else None,
        )
        for index, op in enumerate(OPS[name])
    ]


@pytest.mark.parametrize("multiple_of", [1, 3])
@pytest.mark.parametrize("resource", ["params", "macs"])
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_no_limit_has_room_for_another_rank(
    name: str, data: bool, resource: str, multiple_of: int
) -> None:
    for share in (0.61, 0.23):
        layers = layers_of(name, data=data)
        budget = rf.Budget(**{resource: share}, multiple_of=multiple_of)  # type: ignore[arg-type]  # one of two shares
        choices = list(budget.allocate(layers))
        limit = share * sum(getattr(layer.cost(layer.op), resource) for layer in layers)
        spent = [
            getattr(layer.template_cost(c.method, c.ranks), resource)
            if c.method
            else getattr(layer.cost(layer.op), resource)
            for layer, c in zip(layers, choices, strict=True)
        ]
        assert sum(spent) <= limit
        for layer, choice, cost in zip(layers, choices, spent, strict=True):
            assert choice.method is not None
            most = layer.methods[choice.method].max_ranks(layer.op)
            assert all(
                r % multiple_of == 0 or r == m for r, m in zip(choice.ranks, most, strict=True)
            )
            if "of a matrix" in name:
                steps = [tuple(r + multiple_of for r in choice.ranks)]
            else:
                steps = [
                    tuple(r + multiple_of * (a == axis) for a, r in enumerate(choice.ranks))
                    for axis in range(len(most))
                ]
            for step in steps:
                more = getattr(layer.template_cost(choice.method, step), resource)
                assert sum(spent) - cost + more > limit


def test_the_greatest_loss_per_cost_goes_first() -> None:
    def rungs(gain: float, price: float) -> Rungs:
        losses = {(1,): 10.0 * gain, (11,): 0.0}
        return Rungs((1,), (11,), 1, losses, lambda ranks: np.array([price * ranks[0]]))

    layers = [rungs(1.0, 2.0), rungs(3.0, 2.0), rungs(1.0, 1.0)]
    assert raised(layers, np.array([7.0]), np.array([100.0])) == [(1,), (4,), (2,)]


def test_nothing_is_raised_where_nothing_is_gained_or_it_would_grow() -> None:
    flat = Rungs((1,), (9,), 1, {(1,): 2.0, (9,): 2.0}, lambda ranks: np.array([1.0 * ranks[0]]))
    grows = Rungs(
        (1,), (9,), 1, {(1,): 2.0, (9,): 0.0}, lambda r: np.ones(1) if r == (1,) else None
    )
    assert raised([flat, grows], np.array([50.0]), np.array([100.0])) == [(1,), (1,)]
