from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.core.checkpoints.files import normal, sound

from rankfold.checkpoints.planning import request
from rankfold.errors import RankfoldError
from rankfold.plan.plan import LayerPlan, Plan


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {f"{name}.weight": ("F32", (24, 40), normal(0, 24, 40)) for name in "abc"}
    return sound(tmp_path / "x.safetensors", tensors)


def test_a_plan_is_made_by_policy_and_patterns(source: Path) -> None:
    plan = request(source, "ranks:4", exclude="a", overrides={"c": "ranks:3"}).plan()
    assert plan["a"].reason == "excluded by 'a'"
    assert (plan["b"].ranks, plan["c"].ranks) == ((4,), (3,))
    assert plan.call.startswith("rf.compress_checkpoint(checkpoint, output, ")


def test_an_earlier_plan_is_carried_out_and_told_as_such(source: Path) -> None:
    earlier = request(source, "ranks:4", exclude="a", seed=5).plan()
    layers = tuple(layer for layer in earlier.layers if layer.path != "c")
    edited = msgspec.structs.replace(earlier, layers=layers, notes=("mine",))
    again = request(source, edited).plan()
    assert (again["b"].method, again["b"].ranks) == (earlier["b"].method, (4,))
    assert again["b"].error == earlier["b"].error
    assert again["a"].reason == "excluded by 'a'"
    assert again["c"].reason == "not in the plan"
    assert again.notes[0] == "mine"
    assert (again.seed, again.policy) == (5, earlier.policy)


def test_a_plan_that_replaces_nothing_leaves_all_alone(source: Path) -> None:
    nothing = Plan(layers=(LayerPlan(path="a", reason="mine"),))
    plan = request(source, nothing).plan()
    assert plan.replaced == ()
    assert [layer.reason for layer in plan.layers] == ["mine", "not in the plan", "not in the plan"]


@pytest.mark.parametrize(
    "more", [{"methods": ["svd"]}, {"include": "a"}, {"exclude": "a"}, {"overrides": {"a": "vbmf"}}]
)
def test_a_plan_has_its_methods_and_layers(source: Path, more: dict[str, Any]) -> None:
    earlier = request(source, "ranks:4").plan()
    with pytest.raises(RankfoldError, match="a plan has its methods and layers: leave out"):
        request(source, earlier, **more)


def test_a_plan_for_another_checkpoint_is_an_error(source: Path) -> None:
    planned = LayerPlan(path="head", method="svd", ranks=(4,))
    with pytest.raises(RankfoldError, match="head"):
        request(source, Plan(layers=(planned,)))
