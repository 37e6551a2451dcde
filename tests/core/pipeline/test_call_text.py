"""The call that made a plan, as text: it makes the plan again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import rankfold as rf


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 80), nn.Linear(80, 40))


CALLS: dict[str, dict[str, Any]] = {
    "rf.Energy(share=0.8)": {"policy": rf.Energy(0.8)},
    "rf.Energy(share=0.7)": {"policy": "energy:0.7"},
    "rf.Budget(params=0.5)": {"policy": "budget:0.5"},
    "rf.Budget(params=0.5), methods=('svd',), exclude='2'": {
        "policy": rf.Budget(params=0.5),
        "methods": ["svd"],
        "exclude": ["2"],
    },
    "rf.Ratio(share=0.3), include=('0', '2'), overrides={'2': rf.Energy(share=0.5)}, "
    "placement='classical', seed=7": {
        "policy": rf.Ratio(0.3),
        "include": ("0", "2"),
        "overrides": {"2": "energy:0.5"},
        "placement": "classical",
        "seed": 7,
    },
}


@pytest.mark.parametrize("text", CALLS)
def test_the_text_says_what_decided_and_makes_the_plan_again(text: str) -> None:
    plan = rf.plan(model(), **CALLS[text])
    assert plan.call == f"rf.compress(model, {text})"
    assert eval(plan.call, {"rf": rf, "model": model()}).plan == plan


def test_data_are_no_part_of_it() -> None:
    batches = torch.randn(64, 48).split(16)
    moments = rf.gather(model(), batches)
    text = rf.plan(model(), rf.Ratio(0.3), calibration=batches).call
    assert rf.plan(model(), rf.Ratio(0.3), moments=moments).call == text
    assert text == "rf.compress(model, rf.Ratio(share=0.3))"
    assert rf.compress(model(), rf.Ratio(0.3), calibration=batches, refit=False).plan.call == (
        "rf.compress(model, rf.Ratio(share=0.3), refit=False)"
    )


def test_that_of_a_checkpoint_makes_it_again(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 48), dtype=np.float32)
    save_file({"fc.weight": weight}, tmp_path / "model.safetensors")
    names = {"checkpoint": tmp_path / "model.safetensors", "rf": rf}
    plan = rf.compress_checkpoint(names["checkpoint"], tmp_path / "a", rf.Ranks(8), seed=3)
    assert plan.call == "rf.compress_checkpoint(checkpoint, output, rf.Ranks(ranks=8), seed=3)"
    again = eval(plan.call, {**names, "output": tmp_path / "b"})
    assert again == plan


def test_a_search_is_told_as_it_was_asked_for() -> None:
    def score(model: nn.Module) -> float:
        return 1.0

    small = rf.compress(model(), rf.Budget(drop=0.1, evaluate=score))
    assert small.plan.call.startswith("rf.compress(model, rf.Budget(drop=0.1, evaluate=")
    assert " at 0x" not in small.plan.call


def test_the_command_says_what_decided() -> None:
    plan = rf.plan(
        model(),
        rf.Ratio(0.3),
        methods=("svd",),
        include=("0", "2*"),
        exclude="3",
        overrides={"2": "energy:0.5"},
        placement="classical",
        seed=7,
    )
    assert plan.command == (
        "rankfold compress MODEL -o OUTPUT --policy ratio:0.3 --methods svd --include 0 "
        "--include '2*' --exclude 3 --override 2=energy:0.5 --placement classical --seed 7"
    )
    assert rf.compress(model(), "vbmf").plan.command == (
        "rankfold compress MODEL -o OUTPUT --policy vbmf"
    )


def test_a_policy_without_a_text_is_carried_out_by_its_plan() -> None:
    plan = rf.plan(model(), rf.Ratio(0.3), overrides={"2": rf.Ranks({"2": 5})})
    assert plan.command == "rankfold compress MODEL -o OUTPUT --plan PLAN"
