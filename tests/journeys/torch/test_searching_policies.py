"""Policies of others that decide on whole models or try out several: faults are theirs."""

import collections.abc
import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.plugins import Outcome
from rankfold_torch.adapter import TorchAdapter


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)
    )


X = torch.randn(4, 40)


@dataclass
class Searching:
    """Gives what a function of `attempt` gives."""

    find: Any
    name: ClassVar[str] = "searching"
    looks_at: ClassVar[str] = "models"

    def search(self, model: Any, attempt: Any, resource: str) -> Any:
        return self.find(attempt)

    def allocate(self, layers: Any) -> Any:
        raise AssertionError("search is asked")

    @classmethod
    def from_text(cls, argument: str) -> Any:
        raise AssertionError


def cheapest(attempt: Any) -> Any:
    outcomes = [attempt(rf.Ratio(share)) for share in (0.6, 0.3)]
    return min(outcomes, key=lambda outcome: outcome.plan.model_params[1])


def test_the_outcome_that_a_search_keeps_is_the_result() -> None:
    small = rf.compress(network(), Searching(cheapest), inputs=X)
    alone = rf.compress(network(), rf.Ratio(0.3), inputs=X)
    assert [layer.ranks for layer in small.plan.layers] == [p.ranks for p in alone.plan.layers]
    assert small.plan.policy.startswith("Searching")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "find",
    [
        lambda attempt: None,
        lambda attempt: "abc",
        lambda attempt: 1 / 0,
        lambda attempt: sys.exit(2),
        lambda attempt: attempt(),
        lambda attempt: attempt(rf.Ratio(0.5)).plan,
        lambda attempt: Outcome(None, None, {}),
        lambda attempt: Outcome(None, attempt(rf.Ratio(0.5)).plan, {"0": nn.Linear(3, 4)}),
    ],
)
def test_a_search_that_fails_is_told_as_its_fault(find: Any, inplace: bool) -> None:
    model = network()
    before = [id(module) for module in model]
    with pytest.raises(rf.RankfoldError, match="policy Searching"):
        rf.compress(model, Searching(find), inputs=X, inplace=inplace)
    assert [id(module) for module in model] == before


def test_a_copy_of_an_outcome_with_another_plan_is_one() -> None:
    def renamed(attempt: Any) -> Any:
        outcome = attempt(rf.Ratio(0.5))
        return replace(outcome, plan=outcome.plan)

    assert rf.compress(network(), Searching(renamed), inputs=X).plan.replaced


class Anew(collections.abc.Mapping):
    """Makes its policies at each look-up."""

    def __getitem__(self, key: str) -> Any:
        return rf.Energy(0.5)

    def __iter__(self) -> Any:
        return iter(["2"])

    def __len__(self) -> int:
        return 1


def test_overrides_may_make_their_policies_anew() -> None:
    model = network()
    plan = rf.plan(model, rf.Ratio(0.3), overrides=Anew())
    assert plan == rf.plan(model, rf.Ratio(0.3), overrides={"2": rf.Energy(0.5)})


def test_layers_are_not_refitted_to_a_replacement_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = TorchAdapter.build

    def wrong(self: Any, model: Any, path: str, chain: Any) -> Any:
        module = build(self, model, path, chain)
        if path == "0":
            with torch.no_grad():
                module[0].weight.mul_(1.5)
        return module

    model, batches = network(), [torch.randn(32, 40), torch.randn(32, 40)]
    left = rf.compress(model, rf.Ratio(0.4), inputs=X, calibration=batches, exclude="0")
    monkeypatch.setattr(TorchAdapter, "build", wrong)
    small = rf.compress(model, rf.Ratio(0.4), inputs=X, calibration=batches)
    assert "off by" in small.plan["0"].reason
    assert small.plan["2"].ranks == left.plan["2"].ranks
    for a, b in zip(small.model.parameters(), left.model.parameters(), strict=True):
        assert torch.equal(a, b)
