"""Branches that a module can take, by conditions on constants of it."""

import ast
from typing import Any

import pytest
import torch
from torch import nn

from rankfold_torch.usage.branches import LEFT_OUT, OPEN, Condition, Scope, reachable, settled


class Configured(nn.Module):
    kinds = ("linear", "conv")

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.mode, self.fast, self.options = 1, "plain", False, {"share": True}
        self.sizes = [1, 2]
        self.bias, self.layers = None, nn.ModuleList([nn.ReLU()])
        self.scale, self.steps = nn.Parameter(torch.ones(2)), 0

    @property
    def ready(self) -> bool:
        raise AssertionError("no property is run")

    def warm(self) -> None:
        self.steps = self.later = 1


def condition(text: str, holds: bool = True, **assigned: str | None) -> Condition:
    values: Any = {
        name: [None if value is None else ast.parse(value, mode="eval").body]
        for name, value in assigned.items()
    }
    scope = Scope("self", frozenset({"share"}), values)
    return Condition(ast.parse(text, mode="eval").body, holds, scope)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("self.parts > 1", False),
        ("0 < self.parts < 2", True),
        ("self.mode in ('plain', 'other')", True),
        ("self.mode in self.kinds", False),
        ("not self.fast", True),
        ("self.bias is None", True),
        ("self.scale is not None", True),
        ("len(self.layers) == 1", True),
        ("bool(self.options)", True),
        ("hasattr(self, 'mode')", True),
        ("hasattr(self, 'missing')", False),
        ("getattr(self, 'missing', False)", False),
        ("getattr(self, 'parts', 2) == 1", True),
        ("self.fast and x", False),
        ("not self.fast or x", True),
        ("[self.parts, 2] == (1, 2)", False),
        ("self.sizes == [1, 2]", True),
        ("self.mode in {'plain', 'other'}", True),
    ],
)
def test_constants_decide(text: str, value: bool) -> None:
    module = Configured()
    assert condition(text).of(module) is value
    assert condition(text, holds=False).of(module) is not value


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "self.training",
        "self.scale.dtype == kind",
        "self.scale",
        "self.scale.sum() > 0",
        "self.steps > 0",
        "hasattr(self, 'later')",
        "self.ready",
        "self.warm",
        "self.parts > 'one'",
        "self.options.get('share')",
        "self.fast or x",
        "self.mode in {'plain', self.sizes}",
        "bool(self.parts, base=2)",
    ],
)
def test_what_another_run_may_have_otherwise_is_open(text: str) -> None:
    assert condition(text).of(Configured()) is OPEN


def test_an_option_that_nobody_assigns_is_left_out() -> None:
    module = Configured()
    assert condition("share").of(module) is LEFT_OUT
    assert condition("not share or self.fast").of(module) is LEFT_OUT
    assert condition("share and self.fast").of(module) is False
    assert condition("share", share="self.fast").of(module) is OPEN


def test_local_names_have_the_value_that_is_assigned_to_them_once() -> None:
    module = Configured()
    assert condition("n > 1", n="self.parts").of(module) is False
    assert condition("n > 1", n=None).of(module) is OPEN
    assert condition("a", a="b", b="a").of(module) is OPEN  # and comes to an end


def test_a_branch_is_reached_unless_one_condition_fails_for_good() -> None:
    module = Configured()
    always, never = condition("self.parts == 1"), condition("self.fast")
    unknown, option = condition("x"), condition("share")
    untold = Condition(None, True, Scope("self"))
    assert reachable((always, unknown, option, untold), module)
    assert not reachable((unknown, never), module)
    assert settled((always, option, unknown), module)
    assert not settled((always, unknown, option), module)
    assert not settled((untold,), module)
    assert settled((), module)
