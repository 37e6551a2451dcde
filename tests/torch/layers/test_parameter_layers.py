"""Layers that are one parameter of a module: a product of factors takes its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import rankfold as rf
from rankfold.plugins.hookspecs import ParameterRule
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold_torch.adapter import TorchAdapter

STACK, OUT, INTO = 3, 13, 11


class Bank(nn.Module):
    """Every matrix on the inputs of its own, with a bias and a second, plain matrix behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(STACK, OUT, INTO))
        self.shift = nn.Parameter(torch.randn(STACK, OUT))
        self.matrix = nn.Parameter(torch.randn(OUT, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.einsum("ngi,goi->ngo", x, self.stack) + self.shift) @ self.matrix


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INTO, INTO)
        self.bank = Bank()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.bank(self.first(x))
        return y


X = torch.randn(5, STACK, INTO, generator=torch.Generator().manual_seed(3))
PATHS = ["bank.stack", "bank.matrix"]


@pytest.fixture(autouse=True)
def _rule(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ParameterRule("torch", f"{Bank.__module__}:B*k", ("stack", "matrix"))
    monkeypatch.setattr(registry(), "parameter_rules", [rule])


def factors(model: nn.Module, path: str) -> list[torch.Tensor]:
    owner, _, name = path.rpartition(".")
    listed: Any = model.get_submodule(f"{owner}.parametrizations.{name}")
    return list(listed.parameters(recurse=False))


def test_parameters_are_layers_in_place_of_their_module() -> None:
    plan = rf.plan(Model(), rf.Ranks(3))
    assert [layer.path for layer in plan.layers] == ["first", *PATHS]
    assert [layer.op for layer in plan.layers[1:]] == ["Linear 33→39 groups 3", "Linear 7→13"]


def test_without_a_rule_the_module_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry(), "parameter_rules", [])
    assert "no rule reads a Bank" in rf.plan(Model(), rf.Ranks(3))["bank"].reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_full_rank_reproduces_the_model(dtype: torch.dtype, distance: Callable[..., float]) -> None:
    model, x = Model().to(dtype), X.to(dtype)
    small = rf.compress(model, rf.Ranks("full"), exclude="first")
    assert [layer.path for layer in small.plan.replaced] == PATHS
    assert distance(small.model(x), model(x)) < 16 * torch.finfo(dtype).eps


def test_a_stack_becomes_stacks_of_one_rank(distance: Callable[..., float]) -> None:
    model = Model()
    small = rf.compress(model, rf.Ranks(4), include="bank.stack")
    first, last = factors(small.model, "bank.stack")
    assert (first.shape, last.shape) == ((STACK, 4, INTO), (STACK, OUT, 4))
    for index, matrix in enumerate(model.bank.stack):
        left, values, right = torch.linalg.svd(matrix.detach())
        best = (left[:, :4] * values[:4]) @ right[:4]
        assert distance(small.model.bank.stack[index], best) < 1e-5
    error = distance(small.model.bank.stack, model.bank.stack)
    assert small.plan["bank.stack"].error == pytest.approx(error, rel=1e-4)


def test_the_model_holds_the_factors_alone(count: Callable[[nn.Module], int]) -> None:
    model = Model()
    small = rf.compress(model, rf.Ranks(3))
    assert count(small.model) == sum(layer.params[1] for layer in small.plan.layers) + STACK * OUT
    assert "bank.stack" not in dict(small.model.named_parameters())
    assert torch.equal(small.model.bank.shift, model.bank.shift)


def test_a_copy_leaves_the_model_alone(untouched: Callable[..., Any]) -> None:
    model = Model()
    with untouched(model):
        rf.compress(model, rf.Ranks(3))
    assert type(model.bank) is Bank


def test_in_place_gives_the_outputs_of_a_copy() -> None:
    model = Model()
    copy = rf.compress(model, rf.Ranks(3)).model
    same = rf.compress(model, rf.Ranks(3), inplace=True).model
    assert same is model
    assert torch.equal(same(X), copy(X))


@pytest.mark.parametrize("policy", [rf.Ratio(0.3), rf.Budget(params=0.7), rf.Energy(0.8)])
def test_saved_and_loaded_outputs_are_the_same(policy: Policy, tmp_path: Path) -> None:
    small = rf.compress(Model(), policy)
    assert set(PATHS) & {layer.path for layer in small.plan.replaced}
    small.save(tmp_path / "small")
    loaded = rf.load(Model(), tmp_path / "small")
    assert torch.equal(loaded(X), small.model(X))


def test_the_plan_alone_does_the_same() -> None:
    model = Model()
    small = rf.compress(model, rf.Ratio(0.3))
    assert torch.equal(rf.apply(model, small.plan).model(X), small.model(X))


def test_factors_are_trained_and_expanded(distance: Callable[..., float]) -> None:
    model = Model()
    small = rf.compress(model, rf.Ranks(3))
    small.model(X).square().sum().backward()
    for path in PATHS:
        for factor in factors(small.model, path):
            assert factor.grad is not None
            assert factor.grad.abs().max() > 0
            with torch.no_grad():
                factor.add_(0.1)
    wide = small.expanded(model)
    assert type(wide.bank) is Bank
    assert set(wide.state_dict()) == set(model.state_dict())
    assert distance(wide(X), small.model(X)) < 1e-5


def test_a_model_whose_copy_is_compressed_further_stays_as_it_is() -> None:
    model = rf.compress(Model(), rf.Ranks(3), include="bank.stack").model
    before = model(X)
    smaller = rf.compress(model, rf.Ranks(3), include="bank.matrix").model
    assert torch.equal(model(X), before)
    assert factors(smaller, "bank.matrix")
    assert isinstance(model.bank.matrix, nn.Parameter)


def test_frozen_parameters_have_frozen_factors() -> None:
    model = Model().requires_grad_(False)
    small = rf.compress(model, rf.Ranks(3)).model
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_the_product_cannot_be_assigned_to() -> None:
    small = rf.compress(Model(), rf.Ranks(3)).model
    with pytest.raises(rf.RankfoldError, match="set its factors"):
        small.bank.stack = torch.zeros(STACK, OUT, INTO)


def test_a_product_is_read_once_where_it_is_cached() -> None:
    small = rf.compress(Model(), rf.Ranks(3)).model
    with parametrize.cached():
        assert small.bank.stack is small.bank.stack


def test_a_shared_module_is_one_layer_with_two_paths() -> None:
    model = Model()
    model.other = model.bank
    assert TorchAdapter().aliases(model, "bank.stack") == ("other.stack",)
    small = rf.compress(model, rf.Ranks(3), include="other.stack").model
    assert small.other is small.bank
    assert parametrize.is_parametrized(small.other, "stack")


class TestLeftAlone:
    def test_a_tied_parameter(self) -> None:
        model = Model()
        model.other = nn.Parameter(model.bank.stack[0])
        reason = rf.plan(model, rf.Ranks(3))["bank.stack"].reason
        assert reason == "tied: its stack is also 'other'"

    def test_a_parameter_tied_within_its_module(self) -> None:
        model = Model()
        model.bank.twin = model.bank.matrix
        plan = rf.plan(model, rf.Ranks(3))
        assert plan["bank.matrix"].reason == "tied: its matrix is also 'bank.twin'"
        assert plan["bank.stack"].method == "svd"

    def test_a_parameter_with_a_gradient_hook(self) -> None:
        model = Model()
        model.bank.stack.register_hook(lambda gradient: gradient)
        assert "hooks" in rf.plan(model, rf.Ranks(3))["bank.stack"].reason

    def test_a_parameter_without_values(self) -> None:
        reason = rf.plan(Model().to("meta"), rf.Ranks(3))["bank.stack"].reason
        assert "meta device" in reason

    def test_an_empty_one(self) -> None:
        model = Model()
        model.bank.stack = nn.Parameter(torch.zeros(0, OUT, INTO))
        assert rf.plan(model, rf.Ranks(3))["bank.stack"].reason == "it is empty"

    def test_with_calibration_data(self) -> None:
        batch = torch.randn(32, STACK, INTO)
        plan = rf.compress(Model(), rf.Ranks(3), calibration=[batch], loss="outputs").plan
        assert plan["first"].method == "svd"
        assert "as a layer of its own" in plan["bank.stack"].reason

    def test_within_a_limit_on_latency(self) -> None:
        plan = rf.plan(Model(), rf.Budget(latency=1.0), inputs=X)
        assert plan["bank.stack"].method is None


def test_hooks_on_the_module_stay() -> None:
    model, calls = Model(), []
    model.bank.register_forward_hook(lambda *_: calls.append(1))
    small = rf.compress(model, rf.Ranks(3)).model
    small(X)
    assert calls == [1]


def test_multiply_accumulates_are_not_counted() -> None:
    plan = rf.plan(Model(), rf.Ranks(3), inputs=X)
    layer = plan["bank.stack"]
    assert layer.macs is None
    assert layer.reason == "no call of it is counted on the example inputs"
    assert plan.notes == (
        "MACs are those of the other layers: not counted are those of 'bank.stack', 'bank.matrix'",
    )
    assert plan.macs == plan["first"].macs


@pytest.mark.parametrize("inputs", [None, X])
def test_multiply_accumulates_stay_unknown_when_the_plan_is_applied(inputs: Any) -> None:
    model = Model()
    plan = rf.plan(model, rf.Ranks(3), inputs=X)
    applied = rf.apply(model, plan, inputs=inputs).plan
    assert [layer.macs for layer in applied.layers] == [layer.macs for layer in plan.layers]
    assert applied.notes == plan.notes


def test_a_limit_on_them_says_what_it_does_not_count() -> None:
    plan = rf.compress(Model(), rf.Budget(macs=0.7), inputs=X).plan
    assert any("not counted are those of 'bank.stack'" in note for note in plan.notes)
    assert plan.macs is not None
    assert plan.macs[1] <= 0.7 * plan.macs[0] < plan.macs[0]


def test_without_inputs_nothing_is_said_of_counts() -> None:
    assert rf.plan(Model(), rf.Ranks(3)).notes == ()
