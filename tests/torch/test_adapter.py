"""Layer rules: a plugin teaches the adapter one more layer class."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Chain
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.registry import registry


class Flipped(nn.Module):
    """y = x W + b with W (in, out), and a constant of its own."""

    __constants__ = ["width"]  # noqa: RUF012 - as PyTorch has it

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.width = out
        self.weight = nn.Parameter(torch.randn(into, out))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Child(Flipped):
    """A subclass, which the rule does not match."""


def read(layer: Any) -> rf.Linear:
    return rf.Linear(layer.weight.detach().T.numpy(), layer.bias.detach().numpy())


def read_wrongly(layer: Any) -> rf.Linear:
    return rf.Linear(layer.weight.detach().reshape(7, 11).numpy(), layer.bias.detach().numpy())


def read_anything(layer: Any) -> str:
    return "a layer"


def read_badly(layer: Any) -> rf.Linear:
    raise RuntimeError("no such thing")


def refuse(layer: Any) -> rf.Linear:
    raise Refused("it is in use")


class Twice(nn.Module):
    """Two `Flipped` layers, one after the other."""

    def __init__(self, chain: Chain, layer: Any) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in chain:
            made = Flipped(*stage.weight.shape[::-1])
            made.weight.data = torch.from_numpy(stage.weight.T.copy())
            made.bias.data = torch.zeros(made.width) if stage.bias is None else layer.bias.data
            self.stages.append(made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def build_badly(chain: Chain, layer: Any) -> nn.Module:
    raise RuntimeError("no such thing")


def build_wrongly(chain: Chain, layer: Any) -> nn.Module:
    return Twice(chain[::-1], layer)


def build_nothing(chain: Chain, layer: Any) -> None:
    return None


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers a rule for `Flipped` with functions of this file, by name."""
    home = ModuleType("home_of_the_rule")
    vars(home).update({name: value for name, value in globals().items() if name[0] != "_"})
    monkeypatch.setitem(sys.modules, home.__name__, home)

    def register(read: str = "read", build: str | None = None, **fields: str) -> None:
        made = LayerRule(
            **{
                "adapter": "torch",
                "layer": "home_of_the_rule:Flipped",
                "read": f"home_of_the_rule:{read}",
                "build": None if build is None else f"home_of_the_rule:{build}",
                **fields,
            }
        )
        monkeypatch.setattr(registry(), "rules", [*registry().rules, made])

    return register


def model() -> nn.Module:
    return nn.Sequential(Flipped(11, 7), nn.Linear(7, 5))


def test_without_a_rule_the_layer_is_left_alone() -> None:
    reason = rf.plan(model(), rf.Ranks(2))["0"].reason
    assert reason == "no rule reads a Flipped; a layer rule can teach it"


def test_a_rule_teaches_the_layer(rule: Callable[..., None]) -> None:
    rule()
    assert rf.plan(model(), rf.Ranks(2))["0"].method == "svd"


@pytest.mark.parametrize("build", [None, "Twice"])
def test_full_rank_reproduces_a_layer_read_by_a_rule(
    build: str | None, rule: Callable[..., None], distance: Callable[..., float]
) -> None:
    rule(build=build)
    original, x = model(), torch.randn(3, 11)
    small = rf.compress(original, rf.Ranks("full"))
    assert small.plan["0"].method == "svd"
    assert distance(small.model(x), original(x)) < 1e-5


def test_without_a_build_the_replacement_is_a_sequential(rule: Callable[..., None]) -> None:
    rule()
    built = rf.compress(model(), rf.Ranks(2)).model[0]
    assert isinstance(built, nn.Sequential)
    assert [type(stage) for stage in built] == [nn.Linear, nn.Linear]


def test_the_build_of_the_rule_is_used(rule: Callable[..., None]) -> None:
    rule(build="Twice")
    assert type(rf.compress(model(), rf.Ranks(2)).model[0]) is Twice


def test_constants_of_the_layer_are_readable_on_the_replacement(rule: Callable[..., None]) -> None:
    rule()
    assert rf.compress(model(), rf.Ranks(2)).model[0].width == 7


def test_a_subclass_is_not_matched(rule: Callable[..., None]) -> None:
    rule()
    plan = rf.plan(nn.Sequential(Child(11, 7)), rf.Ranks(2))
    assert plan["0"].reason.startswith("no rule reads a Child")


def test_a_rule_of_another_adapter_is_not_used(rule: Callable[..., None]) -> None:
    rule(adapter="other")
    assert rf.plan(model(), rf.Ranks(2))["0"].reason.startswith("no rule reads")


def test_a_rule_for_a_module_that_is_not_imported_is_not_used(rule: Callable[..., None]) -> None:
    rule(layer="nowhere:Flipped")
    assert rf.plan(model(), rf.Ranks(2))["0"].reason.startswith("no rule reads")


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (
            "read_badly",
            "the layer rule 'home_of_the_rule:read_badly' failed: RuntimeError('no such thing')",
        ),
        ("missing", "the layer rule 'home_of_the_rule:missing' failed: "),
        ("refuse", "it is in use"),
        ("read_anything", "the layer rule 'home_of_the_rule:read_anything' "),
    ],
)
def test_a_read_that_fails_is_the_reason(read: str, reason: str, rule: Callable[..., None]) -> None:
    rule(read)
    small = rf.compress(model(), rf.Ranks(2))
    assert small.plan["0"].method is None
    assert small.plan["0"].reason.startswith(reason)
    assert small.plan["1"].method == "svd"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ("build_badly", "the layer rule 'home_of_the_rule:build_badly' failed: RuntimeError"),
        ("build_wrongly", ""),
        ("build_nothing", ""),
    ],
)
def test_a_build_that_fails_is_the_reason(
    build: str, reason: str, rule: Callable[..., None]
) -> None:
    rule(build=build)
    small = rf.compress(model(), rf.Ranks(2))
    assert small.plan["0"].method is None
    assert small.plan["0"].reason
    assert reason in small.plan["0"].reason
    assert type(small.model[0]) is Flipped
    assert small.plan["1"].method == "svd"


def test_a_layer_read_by_a_rule_is_checked_for_ties(rule: Callable[..., None]) -> None:
    rule()
    tied = nn.Sequential(Flipped(7, 11), nn.Linear(7, 11))
    tied[1].weight = nn.Parameter(tied[0].weight.data.T)
    assert rf.plan(tied, rf.Ranks(2))["0"].reason == "tied: its weight is also '1.weight'"


def test_a_layer_read_by_a_rule_is_checked_for_hooks(rule: Callable[..., None]) -> None:
    rule()
    hooked = model()
    hooked[0].register_forward_hook(lambda *anything: None)
    assert rf.plan(hooked, rf.Ranks(2))["0"].reason.startswith("it has hooks")


def test_macs_of_a_layer_read_by_a_rule_are_counted(rule: Callable[..., None]) -> None:
    rule()
    plan = rf.plan(model(), rf.Ranks(2), inputs=torch.randn(3, 4, 11))
    assert plan["0"].macs == (12 * 77, 12 * 36)


def test_a_model_with_a_layer_read_by_a_rule_is_loaded(
    rule: Callable[..., None], tmp_path: Any
) -> None:
    rule(build="Twice")
    small = rf.compress(model(), rf.Ranks(2))
    small.save(tmp_path / "small")
    x = torch.randn(3, 11)
    assert torch.equal(rf.load(model(), tmp_path / "small")(x), small.model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_conv1d_of_transformers_is_read(
    dtype: torch.dtype, distance: Callable[..., float]
) -> None:
    from transformers.pytorch_utils import Conv1D

    original = nn.Sequential(Conv1D(7, 11)).to(dtype)
    small = rf.compress(original, rf.Ranks("full"))
    x = torch.randn(3, 11, dtype=torch.float64)
    assert {p.dtype for p in small.model.parameters()} == {dtype}
    y = original.double()(x)
    assert distance(small.model.double()(x), y) < 20 * torch.finfo(dtype).eps
