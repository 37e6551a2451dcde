"""plan, apply and compress in every framework: they agree, and do what they are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.journeys.frameworks import PATHS, Framework

import rankfold as rf

CHOICES = [
    pytest.param(rf.Energy(0.5), None, id="energy"),
    pytest.param(rf.Ratio(0.4), None, id="ratio"),
    pytest.param(rf.VBMF(), None, id="vbmf"),
    pytest.param(rf.Ranks(2), ("svd", "cp"), id="cp"),
    pytest.param(rf.Budget(params=0.5), None, id="budget"),
    pytest.param(rf.Ranks("full"), ("svd", "spatial_svd"), id="full"),
]


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("policy", "methods"), CHOICES)
def test_a_plan_that_was_stored_and_applied_is_compressing_bit_for_bit(
    framework: Framework, policy: Any, methods: Any
) -> None:
    model, x = framework.network()
    small = rf.compress(model, policy, methods=methods, inputs=x, seed=3)
    np.random.seed(99)
    plan = rf.plan(model, policy, methods=methods, inputs=x, seed=3)
    assert plan.replaced
    assert small.plan == plan
    assert rf.Plan.from_json(plan.to_json()) == plan
    applied = rf.apply(model, rf.Plan.from_json(plan.to_json()), inputs=x)
    assert framework.same(applied.model, small.model)
    assert applied.plan == plan


def test_the_predicted_size_is_that_of_the_result(framework: Framework) -> None:
    model, x = framework.network()
    before = framework.state(model)
    small = rf.compress(model, rf.Budget(params=0.6, macs=0.5), inputs=x)
    sizes = framework.size(model), framework.size(small.model)
    assert small.plan.model_params == sizes
    assert sizes[1] <= 0.6 * sizes[0]
    assert small.plan.macs is not None
    assert small.plan.macs[1] <= 0.5 * small.plan.macs[0]
    after = framework.state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_full_rank_reproduces_the_outputs(framework: Framework) -> None:
    model, x = framework.network()
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert len(small.plan.replaced) == 3
    wanted = framework.outputs(model, x)
    apart = np.linalg.norm(framework.outputs(small.model, x) - wanted)
    assert apart <= 1e-5 * np.linalg.norm(wanted)


def test_an_infeasible_budget_names_the_least_feasible_one(framework: Framework) -> None:
    model, x = framework.network()
    with pytest.raises(rf.RankfoldError, match=r"the smallest that can is params=0\.\d+") as error:
        rf.plan(model, rf.Budget(params=0.001), inputs=x)
    least = float(str(error.value).rsplit("params=", 1)[1])
    small = rf.compress(model, rf.Budget(params=least), inputs=x).model
    assert framework.size(small) <= least * framework.size(model)


def test_layers_are_chosen_by_patterns(framework: Framework) -> None:
    model, x = framework.network()
    plan = rf.plan(model, rf.Ranks(2), inputs=x, include=["[ac]"])
    assert [layer.path for layer in plan.replaced] == ["a", "c"]
    assert plan["b"].reason == "not included"
    plan = rf.plan(model, rf.Ranks(2), inputs=x, include="*", exclude="b")
    assert [layer.path for layer in plan.replaced] == ["a", "c"]
    assert plan["b"].reason == "excluded by 'b'"
    plan = rf.plan(model, rf.Ranks(2), inputs=x, overrides={"c": rf.Ranks(7), "*": rf.Ranks(3)})
    assert [layer.ranks[0] for layer in plan.layers] == [3, 3, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["a", "fc*"]}, r"include: pattern 'fc\*' matches no layer"),
        ({"exclude": ["a", "fc*"]}, r"exclude: pattern 'fc\*' matches no layer"),
        ({"overrides": {"fc*": rf.Ranks(3)}}, r"overrides: pattern 'fc\*' matches no layer"),
        ({"methods": ("svd", "qr")}, r"methods: 'qr' is unknown; use a tuple of .*tucker2"),
        ({"methods": 5}, r"methods: 5; give names"),
        ({"methods": ()}, "methods: none given"),
        ({"placement": "even"}, "placement 'even'"),
        ({"seed": -1}, "seed"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_an_option_that_cannot_be_is_an_error(
    framework: Framework, options: dict[str, Any], message: str
) -> None:
    model, x = framework.network()
    with pytest.raises(rf.RankfoldError, match=message):
        rf.compress(model, rf.Ranks(2), inputs=x, **options)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"path": "d"}, "layer 'd' of the plan is not in the model"),
        ({"op": "Linear 30→41"}, "layer 'c' is Linear 30→40, but the plan is for Linear 30→41"),
        ({"method": "qr"}, "methods: 'qr' is unknown"),
        ({"ranks": (31,)}, "layer 'c': svd: rank 31 exceeds 30"),
        ({"ranks": (0,)}, "layer 'c': ranks holds 0; use at least 1"),
        ({"ranks": (3, 3)}, r"layer 'c': svd: 2 ranks \(3, 3\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value.items())),
)
def test_a_plan_for_another_model_is_an_error(
    framework: Framework, layer: dict[str, Any], message: str
) -> None:
    model, x = framework.network()
    planned = rf.LayerPlan(**{"path": "c", "method": "svd", "ranks": (6,), **layer})
    with pytest.raises(rf.RankfoldError, match=message):
        rf.apply(model, rf.Plan(layers=(planned,)), inputs=x)


def test_a_plan_written_by_hand_is_done_and_no_more(framework: Framework) -> None:
    model, x = framework.network()
    plan = rf.Plan(
        layers=(
            rf.LayerPlan(path="b", method="tucker2", ranks=(4, 3)),
            rf.LayerPlan(path="c", method="tucker2", ranks=(2, 2)),
        )
    )
    small = rf.apply(model, plan, inputs=x)
    assert small.plan["a"].reason == "not in the plan"
    assert small.plan["c"].reason == "tucker2 applies to convolutions, not to Linear; use svd"
    planned = small.plan["b"]
    assert planned.params == (6510, 24 * 3 + 9 * 3 * 4 + 4 * 30 + 30)
    assert framework.size(model) - framework.size(small.model) == 6510 - planned.params[1]


def test_every_layer_left_alone_has_a_reason(framework: Framework) -> None:
    model, x = framework.network()
    for policy in (rf.Energy(0.999), rf.Ratio(1.0), rf.Ranks(25)):
        plan = rf.plan(model, policy, inputs=x, methods="svd")
        assert [layer.path for layer in plan.layers] == list(PATHS)
        assert all(layer.reason for layer in plan.layers if layer.method is None)
    assert plan["b"].reason == "svd needs a kernel of 1 along every axis; use channel_svd"
    assert plan["c"].ranks == (25,)
    assert plan["c"].reason.startswith("grew: parameters 1240 → ")


def test_a_compressed_model_is_compressed_again(framework: Framework) -> None:
    model, x = framework.network()
    once = rf.compress(model, rf.Ratio(0.6), inputs=x).model
    twice = rf.compress(once, rf.Ratio(0.4), inputs=x)
    assert twice.plan.replaced
    assert framework.size(twice.model) < framework.size(once)
    whole = rf.compress(once, rf.Ranks("full"), inputs=x).model
    wanted = framework.outputs(once, x)
    assert np.linalg.norm(framework.outputs(whole, x) - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_the_report_names_every_layer_and_the_totals(framework: Framework) -> None:
    model, x = framework.network()
    small = rf.compress(model, rf.Ranks(2), inputs=x, exclude="b")
    text = small.report()
    assert "2 of 3 layers replaced" in text
    assert "excluded by 'b'" in text
    assert all(layer.op.split()[0] in text for layer in small.plan.layers)
