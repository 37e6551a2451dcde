"""The method of least error at equal cost."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from tests.core.policies.layers import DEFAULT, choose, layer, low_rank

import rankfold as rf
from rankfold.layers.candidates import Candidate
from rankfold.ops import Conv, Cost, macs, params
from rankfold.policies.base import Choice, Policy
from rankfold.policies.best_method import _largest_within, _least, best_method


@pytest.mark.parametrize("policy", [rf.Energy(0.8), rf.Ratio(0.4)])
@pytest.mark.parametrize("shape", [(47, 29, 3, 3), (29, 47, 5, 1), (31, 64, 3), (11, 13, 3, 2, 2)])
def test_the_method_has_the_least_error_within_the_cost_of_the_first(
    policy: Policy, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    weight = (
        rng.standard_normal(shape)
        * (1.0 + np.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1)) ** -0.7
    )
    op = rf.Conv(weight)
    first = choose(policy, op, ("tucker2",))
    assert first.method == "tucker2"
    view = layer(op, (*DEFAULT, "cp3"))
    limit = view.template_cost("tucker2", first.ranks)
    (best,) = policy.allocate([view])
    chosen = view.candidate(best.method, best.ranks)
    assert chosen.cost.within(limit)
    for name in view.methods:
        base = view.methods[name].max_ranks(op)
        ranks = first.ranks if name == "tucker2" else _largest_within(view, name, limit, base)
        if ranks is not None:
            assert chosen.error <= view.candidate(name, ranks).error * (1 + 1e-5)


@pytest.mark.parametrize("policy", [rf.Energy(0.99), rf.Ratio(0.9), rf.VBMF(weaken=0.9)])
def test_no_layer_grows(policy: Policy, rng: np.random.Generator) -> None:
    for shape in [(13, 17, 3, 3), (64, 3, 3, 3), (5, 7), (40, 40), (16, 1, 3, 3)]:
        weight = low_rank(rng, 1, *shape)
        op = (
            rf.Linear(weight)
            if len(shape) == 2
            else rf.Conv(weight, groups=16 if shape[1] == 1 else 1)
        )
        view = layer(op)
        (choice,) = policy.allocate([view])
        if choice.method is not None:
            assert view.template_cost(choice.method, choice.ranks).params < params(op)
        else:
            assert choice.reason


def test_a_stage_before_the_stride_counts_at_input_resolution(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((32, 64, 3, 3)), stride=4)
    extent = (1, 64, 64)
    view = layer(op, ("tucker2",), (extent,))
    (choice,) = rf.Ratio(0.9).allocate([view])
    assert choice.method is None
    assert choice.reason.startswith("grew: ")
    template = view.methods["tucker2"].template(op, (12, 57))
    assert params(template) < params(op)
    assert macs(template, extent) > macs(op, extent)


def test_depthwise_convolutions_are_left_alone_or_split_along_the_axes(
    rng: np.random.Generator,
) -> None:
    small = choose(rf.Ratio(0.9), rf.Conv(rng.standard_normal((16, 1, 2, 2)), groups=16))
    assert small.method is None
    assert small.reason.startswith("depthwise")
    large = choose(rf.Energy(0.1), rf.Conv(rng.standard_normal((16, 1, 7, 7)), groups=16))
    assert large.method == "spatial_svd"


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("policy", [rf.VBMF(), rf.Energy(0.9), rf.Ratio(0.5)])
def test_a_weight_that_cannot_be_decomposed_gives_a_reason(policy: Policy, value: float) -> None:
    choice = choose(policy, rf.Linear(np.full((5, 7), value)))
    if choice.method is not None:
        view = layer(rf.Linear(np.full((5, 7), value)))
        with pytest.raises(Exception, match="the weight"):
            view.candidate(choice.method, choice.ranks)
    else:
        assert "the weight" in choice.reason


def test_of_methods_that_differ_by_rounding_the_first_is_taken() -> None:
    class Known:
        def candidate(self, method: str, ranks: tuple[int, ...]) -> Candidate:
            loss = {"first": 0.25, "rounding": 0.25 * (1 - 1e-7), "better": 0.25 * (1 - 1e-3)}
            return Candidate(method, ranks, (), Cost(1, 1), 0.5, loss[method])

    layer = cast(Any, Known())
    assert _least(layer, {"first": (2,), "rounding": (3,)}, {}).method == "first"
    assert _least(layer, {"first": (2,), "better": (3,)}, {}).method == "better"


def test_where_no_method_has_a_rank_the_reason_is_said_once(rng: np.random.Generator) -> None:
    view = layer(Conv(rng.standard_normal((13, 11, 3, 3))))
    choice = best_method(view, lambda mode: 0, zero_rank_reason="nothing there")
    assert choice == Choice(None, reason="nothing there")


def test_methods_that_are_left_out_for_different_reasons_are_named(
    rng: np.random.Generator,
) -> None:
    view = layer(Conv(rng.standard_normal((13, 11, 3, 3))), ("tucker2", "channel_svd"))
    ranks = {13: 13, 11: 0}
    choice = best_method(view, lambda mode: ranks[mode.channels], zero_rank_reason="no input")
    assert choice.method is None
    assert "tucker2: no input; channel_svd: grew: " in choice.reason
