"""Chains without values in a model without values."""

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.plan.plan import Plan
from rankfold_transformers.structure import restructured


def model(device: str = "meta") -> nn.Module:
    layers = {"a": nn.Linear(12, 8), "b": nn.Sequential(nn.Conv2d(6, 10, 3), nn.Linear(8, 6))}
    return nn.ModuleDict(layers).to(device)


def plan() -> Plan:
    return rf.plan(model("cpu"), rf.Ranks(2), exclude="b.1", include="*")


def test_chains_have_the_shapes_of_the_plan_and_no_values() -> None:
    target = model()
    layer, tensors = target.a, dict(target.named_parameters())  # type: ignore[union-attr]
    exchanges = restructured(target, plan())
    assert [(each.path, each.name) for each in exchanges] == [("a", "a"), ("b.0", "0")]
    assert exchanges[0].layer is layer
    assert exchanges[0].chain is target.get_submodule("a")
    assert exchanges[1].owner is target.get_submodule("b")
    expected = rf.compress(model("cpu"), rf.Ranks(2), exclude="b.1", include="*").model
    shapes = {name: p.shape for name, p in expected.named_parameters()}
    assert {name: p.shape for name, p in target.named_parameters()} == shapes
    assert {p.device.type for p in target.parameters()} == {"meta"}
    # layers that are out of the model have their own parameters again, too
    assert layer.weight is tensors["a.weight"]
    assert target.get_parameter("b.1.weight") is tensors["b.1.weight"]


def test_values_that_are_there_stay() -> None:
    target = model()
    target.b[1] = nn.Linear(8, 6)  # type: ignore[union-attr,operator]
    kept = target.get_parameter("b.1.weight")
    restructured(target, plan())
    assert target.get_parameter("b.1.weight") is kept
    assert torch.isfinite(kept).all()


def test_a_plan_of_another_model_is_an_error_that_leaves_no_blanks() -> None:
    target = nn.ModuleDict({"a": nn.Linear(12, 9)}).to("meta")
    with pytest.raises(rf.RankfoldError, match=r"'b\.0' of the plan is not in the model"):
        restructured(target, plan())
    assert {p.device.type for p in target.parameters()} == {"meta"}
