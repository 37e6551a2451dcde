from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import RankfoldError
from rankfold.plugins.hookspecs import ParameterRule
from rankfold.plugins.registry import registry
from rankfold_torch.optimizers import following

takes_names = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6),
    reason="optimizers take no named parameters",
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.Linear(30, 5))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 24, 16))
        self.down = nn.Parameter(torch.randn(3, 16, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.up.mT @ self.down.mT


def names(model: nn.Module, group: dict[str, list[torch.Tensor]]) -> list[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in group["params"]]


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(7, 12)).square().mean().backward()
    optimizer.step()


def test_each_group_has_the_successors_of_its_parameters() -> None:
    model = network()
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    biases = [layer.bias for layer in model if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.Adam(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.5}], lr=0.1
    )
    trained(model, optimizer)
    kept = dict(optimizer.state[model[3].weight])
    with following(model, [optimizer]):
        rf.compress(model, rf.Ranks(3), exclude="3", inplace=True)
    decayed, other = optimizer.param_groups
    factors = ["0.0.weight", "0.1.weight", "2.0.weight", "2.1.weight"]
    assert names(model, decayed) == [*factors, "3.weight"]
    assert names(model, other) == ["0.1.bias", "2.1.bias", "3.bias"]
    assert (decayed["weight_decay"], other["lr"]) == (0.1, 0.5)
    assert all(optimizer.state[model[3].weight][name] is value for name, value in kept.items())
    assert set(optimizer.state) == {model[3].weight, model[3].bias}
    before = [parameter.clone() for parameter in model.parameters()]
    trained(model, optimizer)
    assert not any(map(torch.equal, before, model.parameters()))


def test_the_way_back_and_a_refit_are_followed_too() -> None:
    model, x = network(), torch.randn(64, 12)
    original = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with following(model, [optimizer]):
        small = rf.compress(model, "budget:params=0.5", calibration=x.split(16), inplace=True)
    assert names(model, optimizer.param_groups[0]) == [n for n, _ in model.named_parameters()]
    with following(model, [optimizer]):
        small.expanded(original, inplace=True)
    expected = {name for name, _ in original.named_parameters()}
    assert set(names(model, optimizer.param_groups[0])) == expected


def test_frozen_layers_stay_out_and_errors_change_nothing() -> None:
    model = network()
    model[0].requires_grad_(False)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    with pytest.raises(RankfoldError, match="matches no layer"), following(model, [optimizer]):
        rf.compress(model, rf.Ranks(3), exclude="9", inplace=True)
    assert optimizer.param_groups[0]["params"] == chosen
    with following(model, [optimizer]):
        rf.compress(model, rf.Ranks(3), exclude="3", inplace=True)
    held = names(model, optimizer.param_groups[0])
    assert set(held) == {"2.0.weight", "2.1.weight", "2.1.bias", "3.weight", "3.bias"}


def test_what_is_no_optimizer_is_named() -> None:
    with pytest.raises(RankfoldError, match="a list is no torch"):
        following(network(), [[]]).__enter__()


class Wrapper(torch.optim.Optimizer):
    """Stand for wrappers such as accelerate's, which show the groups of the optimizer inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Wrapper])
def test_an_optimizer_with_a_list_of_its_own_is_refused_before_anything_changes(wrap: Any) -> None:
    model = network()
    before = dict(model.named_parameters())
    lbfgs = torch.optim.LBFGS(model.parameters())
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    gradual = rf.Gradual({0: rf.Ranks(3)})
    with pytest.raises(RankfoldError, match=r"a LBFGS holds .*'_params'.*make it anew after each"):
        gradual.step(model, 0, [first, wrap(lbfgs)])
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is parameter for name, parameter in after.items())
    assert first.param_groups[0]["params"] == lbfgs.param_groups[0]["params"] == [*after.values()]
    other = torch.optim.LBFGS(network().parameters())  # holds nothing of the model
    assert gradual.step(model, 0, [first, other])


def test_factors_of_experts_come_into_the_groups_of_their_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = ParameterRule("torch", f"{Experts.__module__}:Experts", ("up", "down"))
    monkeypatch.setattr(registry(), "parameter_rules", [rule])
    model = nn.Sequential(nn.Linear(16, 16), Experts())
    before = list(dict(model.named_parameters()))
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.1} for p in model.parameters()])
    gradual = rf.Gradual({0: rf.Ranks(3), 1: rf.Ranks(2)}, exclude="0")
    for number in (0, 1):
        gradual.step(model, number, [optimizer])
        groups = [names(model, group) for group in optimizer.param_groups]
        by_name = dict(zip(before, groups, strict=True))
        for name in ("up", "down"):
            factors = [f"1.parametrizations.{name}.original{i}" for i in (0, 1)]
            assert by_name[f"1.{name}"] == factors
    assert gradual.compressed is not None
    with following(model, [optimizer]):
        gradual.compressed.expanded(nn.Sequential(nn.Linear(16, 16), Experts()), inplace=True)
    assert [names(model, group) for group in optimizer.param_groups] == [[n] for n in before]


@takes_names
@pytest.mark.parametrize("prefix", ["", "module"])
def test_named_parameters_are_renamed(prefix: str) -> None:
    model, other = network(), nn.Linear(2, 2)
    named = [*model.named_parameters(prefix=prefix), *other.named_parameters(prefix="other")]
    optimizer = torch.optim.AdamW(named)
    gradual = rf.Gradual({0: rf.Ranks(3), 1: rf.Ranks(2)}, exclude="3")
    for number in (0, 1):
        gradual.step(model, number, optimizer)
        trained(model, optimizer)
        named = [*model.named_parameters(prefix=prefix), *other.named_parameters(prefix="other")]
        [group] = optimizer.param_groups
        assert group["param_names"] == [name for name, _ in named]
        assert [*map(id, group["params"])] == [id(parameter) for _, parameter in named]
    torch.optim.AdamW(named).load_state_dict(optimizer.state_dict())


@takes_names
def test_names_of_the_users_own_give_way_to_those_of_the_model() -> None:
    model = network()
    weight = model[0].weight
    optimizer = torch.optim.SGD([("first", weight), ("head", model[3].weight)], lr=0.1)
    with following(model, [optimizer]):
        rf.compress(model, rf.Ranks(3), exclude="3", inplace=True)
    assert optimizer.param_groups[0]["param_names"] == ["0.0.weight", "0.1.weight", "head"]
