"""Plans that were changed by hand, and calls that overlap."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import rankfold as rf


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(5, 13, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(13, 17, 3, padding=1),
        nn.Flatten(),
        nn.Linear(17 * 36, 19),
    )


X = torch.zeros(1, 5, 6, 6)


def edited(path: str, **changes: Any) -> rf.Plan:
    document = json.loads(rf.plan(model(), rf.Ratio(0.3), inputs=X).to_json())
    for layer in document["layers"]:
        if layer["path"] == path:
            layer.update(changes)
    return rf.Plan.from_json(json.dumps(document))


def size_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("inputs", [None, X], ids=["without inputs", "with inputs"])
def test_a_layer_taken_out_of_a_plan_saves_nothing(inputs: Any) -> None:
    small = rf.apply(model(), edited("2", method=None, ranks=[]), inputs=inputs)
    layer = small.plan["2"]
    assert layer.method is None
    assert layer.reason == "left alone by the plan"
    assert layer.params[0] == layer.params[1]
    assert layer.macs[0] == layer.macs[1]
    assert layer.error is None
    assert small.plan.model_params[1] == size_of(small.model)


def test_macs_of_ranks_that_were_changed_are_not_those_of_the_plan() -> None:
    plan = edited("2", ranks=[15, 12])
    assert rf.apply(model(), plan).plan["2"].macs is None
    counted = rf.apply(model(), plan, inputs=X).plan["2"].macs
    assert counted == (36 * 17 * 13 * 9, 36 * (13 * 12 + 12 * 15 * 9 + 15 * 17))


def test_a_method_that_does_not_apply_saves_nothing() -> None:
    layer = rf.apply(model(), edited("4", method="tucker2", ranks=[3, 3])).plan["4"]
    assert layer.method is None
    assert layer.macs[0] == layer.macs[1]


def test_a_layer_left_alone_by_the_plan_must_be_the_one_planned() -> None:
    plan = rf.plan(model(), rf.Ratio(0.3), exclude="0")
    other = model()
    other[0] = nn.Conv2d(5, 13, 5, padding=2)
    with pytest.raises(rf.RankfoldError, match="layer '0' is Conv 5→13 5×5, but the plan"):
        rf.apply(other, plan)


def test_a_plan_made_by_hand_is_validated() -> None:
    plan = msgspec.structs.replace(rf.plan(model(), rf.Ratio(0.3)), version=9)
    with pytest.raises(rf.RankfoldError, match="version 9"):
        rf.apply(model(), plan)
    with pytest.raises(rf.RankfoldError, match=r"plan: NoneType; give a rankfold\.Plan"):
        rf.apply(model(), None)


@pytest.mark.parametrize(
    "given", [iter(["2"]), (path for path in ["2"])], ids=["iter", "generator"]
)
def test_patterns_may_be_any_iterable(given: Any) -> None:
    plan = rf.plan(model(), rf.Ratio(0.3), exclude=given)
    assert plan["2"].reason == "excluded by '2'"
    assert plan["0"].method is not None


ARGUMENTS = {
    "no pattern": ({"include": []}, "include: no pattern"),
    "number": ({"exclude": 5}, "exclude: 5; give a glob pattern"),
    "list": ({"overrides": [("2", rf.Ratio(0.3))]}, "overrides: list; give a mapping"),
}


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_arguments_of_a_wrong_kind_are_a_clear_error(name: str) -> None:
    options, message = ARGUMENTS[name]
    with pytest.raises(rf.RankfoldError, match=message):
        rf.plan(model(), rf.Ratio(0.3), **options)


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.net, self.seconds = model(), seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.net(x)


def test_two_traces_at_once_leave_no_trace() -> None:
    before = nn.Module.__getattr__
    shared = Slow(0.2).train()
    plans: list[rf.Plan] = []

    def work(target: nn.Module) -> None:
        plans.append(rf.plan(target, rf.Ratio(0.3), inputs=X, include="*"))

    threads = [threading.Thread(target=work, args=(m,)) for m in (shared, shared, Slow(0.1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__getattr__ is before
    assert shared.training
    assert [len(plan.replaced) for plan in plans] == [3, 3, 3]
