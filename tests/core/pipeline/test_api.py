from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter, arrays
from rankfold_numpy.framework import Conv1D, Dense, Model
from tests.core.numpy_models import Gathers, model

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.plan.plan import LayerPlan, Plan

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


def network() -> Any:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return Model(
        [
            Conv1D(drawn(3, 5, 13), drawn(13), padding=(1, 1)),
            Conv1D(drawn(3, 13, 17), drawn(17), padding=(1, 1)),
            Dense(drawn(17, 19), drawn(19)),
        ]
    )


IMAGE = np.zeros((1, 6, 5), np.float32)


def edited(path: str, **changes: Any) -> Plan:
    plan = rf.plan(network(), rf.Ratio(0.3), inputs=IMAGE, include="*", adapter=NumpyAdapter())
    document = json.loads(plan.to_json())
    for layer in document["layers"]:
        if layer["path"] == path:
            layer.update(changes)
    return Plan.from_json(json.dumps(document))


def applied(plan: Plan, target: Any = None, **options: Any) -> rf.Compressed:
    return rf.apply(target or network(), plan, adapter=NumpyAdapter(), **options)


@pytest.mark.parametrize("inputs", [None, IMAGE], ids=["without inputs", "with inputs"])
def test_a_layer_taken_out_of_a_plan_saves_nothing(inputs: Any) -> None:
    small = applied(edited("1", method=None, ranks=[]), inputs=inputs)
    layer = small.plan["1"]
    assert layer.method is None
    assert layer.reason == "left alone by the plan"
    assert layer.params is not None
    assert layer.macs is not None
    assert layer.params[0] == layer.params[1]
    assert layer.macs[0] == layer.macs[1]
    assert layer.error is None
    assert small.plan.model_params[1] == sum(a.size for a in arrays(small.model).values())


def test_macs_of_ranks_that_were_changed_are_not_those_of_the_plan() -> None:
    plan = edited("1", method="tucker2", ranks=[15, 12])
    assert applied(plan).plan["1"].macs is None
    counted = applied(plan, inputs=IMAGE).plan["1"].macs
    assert counted == (6 * 17 * 13 * 3, 6 * (13 * 12 + 12 * 15 * 3 + 15 * 17))


def test_a_method_that_does_not_apply_saves_nothing() -> None:
    layer = applied(edited("2", method="tucker2", ranks=[3, 3])).plan["2"]
    assert layer.method is None
    assert layer.macs is not None
    assert layer.macs[0] == layer.macs[1]


def test_a_layer_left_alone_by_the_plan_must_be_the_one_planned() -> None:
    plan = rf.plan(network(), rf.Ratio(0.3), exclude="0", adapter=NumpyAdapter())
    other = network()
    other.layers[0] = Conv1D(np.ones((5, 5, 13), np.float32), padding=(2, 2))
    with pytest.raises(RankfoldError, match="layer '0' is Conv 5→13 5, but the plan"):
        applied(plan, other)


def test_a_plan_made_by_hand_is_validated() -> None:
    plan = msgspec.structs.replace(edited("0"), version=9)
    with pytest.raises(RankfoldError, match="version 9"):
        applied(plan)
    with pytest.raises(RankfoldError, match=r"plan: NoneType; give a rankfold\.Plan"):
        rf.apply(network(), None)  # type: ignore[arg-type]  # on purpose


def test_layers_that_a_plan_does_not_list_are_left_alone() -> None:
    plan = Plan(layers=(LayerPlan(path="2", method="svd", ranks=(4,)),))
    small = applied(plan)
    assert [layer.reason for layer in small.plan.layers][:2] == ["not in the plan"] * 2
    assert small.plan["2"].ranks == (4,)
    with pytest.raises(RankfoldError, match="head"):
        applied(Plan(layers=(LayerPlan(path="head", method="svd", ranks=(4,)),)))


def test_planning_and_applying_is_compressing_to_the_bit() -> None:
    options: dict[str, Any] = {"inputs": IMAGE, "adapter": NumpyAdapter()}
    plan = rf.plan(network(), "ratio:0.3", **options)
    small = rf.compress(network(), rf.Ratio(0.3), **options)
    assert small.plan == plan
    first, second = arrays(small.model), arrays(applied(plan).model)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_model_itself_is_changed_where_that_is_asked_for() -> None:
    target = network()
    assert rf.compress(target, rf.Ranks(3), inplace=True, adapter=NumpyAdapter()).model is target
    assert all(isinstance(layer, Model) for layer in target.layers)
    untouched = network()
    rf.compress(untouched, rf.Ranks(3), adapter=NumpyAdapter())
    assert not any(isinstance(layer, Model) for layer in untouched.layers)


def test_moments_are_gathered_for_any_number_of_plans() -> None:
    dense = model(40, 30, 20)
    moments = rf.gather(dense, [X], adapter=Gathers())
    plan = rf.plan(dense, rf.Ranks(5), moments=moments, adapter=NumpyAdapter())
    assert plan["0"].predicted is not None
    assert plan == rf.plan(dense, rf.Ranks(5), calibration=[X], adapter=Gathers())
    with pytest.raises(RankfoldError, match="calibration: too little; give at least 16 examples"):
        rf.gather(dense, [X[:15]], adapter=Gathers())
