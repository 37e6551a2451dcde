from __future__ import annotations

import sys
import types
from collections.abc import Callable

import numpy as np
import pytest

from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Linear, Op
from rankfold.plugins import layer_rules
from rankfold.plugins.hookspecs import (
    LayerRule,
)
from rankfold.plugins.layer_rules import carried_out, read_by, rule_for


class Square:
    """A layer of somebody's."""


class Deeper(Square):
    """A subclass, which may compute something else."""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    plugin = types.ModuleType("plugin_of_rules")
    vars(plugin)["Square"] = Square
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    rules = [
        LayerRule("other", "plugin_of_rules:Square", "plugin_of_rules:read"),
        LayerRule("mine", "never_imported_module:Square", "plugin_of_rules:read"),
        LayerRule("mine", "plugin_of_rules:Square", "plugin_of_rules:read"),
    ]
    monkeypatch.setattr(layer_rules, "registry", lambda: types.SimpleNamespace(rules=rules))
    return plugin


def test_a_rule_is_for_its_adapter_and_its_very_class(module: types.ModuleType) -> None:
    rule = rule_for("mine", Square)
    assert rule is not None
    assert (rule.adapter, rule.layer) == ("mine", "plugin_of_rules:Square")
    assert rule_for("mine", Deeper) is None
    assert rule_for("nobody's", Square) is None
    assert "never_imported_module" not in sys.modules


def reading(module: types.ModuleType, read: Callable[[object], object]) -> Op:
    vars(module)["read"] = read
    rule = rule_for("mine", Square)
    assert rule is not None
    return read_by(rule, Square())


def test_a_layer_is_read_by_its_rule(module: types.ModuleType) -> None:
    op = Linear(np.ones((5, 7)))
    assert reading(module, lambda layer: op if type(layer) is Square else None) is op


def refuses(layer: object) -> Op:
    raise Refused("not today")


def overflows(layer: object) -> Op:
    raise RankfoldError("stride 0")


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda layer: 3, "the layer rule 'plugin_of_rules:read' gave int, not an op"),
        (lambda layer: 1 / 0, "layer rule 'plugin_of_rules:read'.*ZeroDivisionError"),
        (lambda layer: sys.exit(1), "layer rule 'plugin_of_rules:read'.*SystemExit"),
        (refuses, "^not today$"),
        (overflows, "the layer rule 'plugin_of_rules:read' failed: stride 0"),
    ],
)
def test_what_a_rule_does_wrong_is_a_reason(
    module: types.ModuleType, read: Callable[[object], object], reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        reading(module, read)


def test_a_function_that_cannot_be_imported_is_a_reason() -> None:
    with pytest.raises(Refused, match=r"layer rule 'no.such.module:read'.*ModuleNotFoundError"):
        carried_out("no.such.module:read", None)
