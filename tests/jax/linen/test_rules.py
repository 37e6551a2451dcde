"""Linen layers that a layer rule reads."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rankfold.errors import Refused
from rankfold.ops import Linear
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.registry import registry
from rankfold_jax.linen.layers import raw
from rankfold_jax.linen.rules import Calls, RuledLayer, rule_of, shapes_in


class Turned(nn.Module):
    """A linear layer whose matrix is (out, in)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        matrix = self.param("matrix", nn.initializers.ones, (7, 5))
        return x @ matrix.T + self.param("shift", nn.initializers.zeros, (7,))


def read(layer: Any) -> Linear:
    params = layer.variables["params"]
    return Linear(np.asarray(params["matrix"]), np.asarray(params["shift"]))


RULE = LayerRule("linen", "home_of_the_rule:Turned", read="home_of_the_rule:read")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    home = ModuleType("home_of_the_rule")
    vars(home).update(Turned=Turned, read=read)
    monkeypatch.setitem(sys.modules, home.__name__, home)
    monkeypatch.setattr(registry(), "rules", [*registry().rules, RULE])


def node() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.standard_normal((7, 5)), jnp.float32)
    return {"matrix": nn.Partitioned(matrix, ("out", "in")), "shift": jnp.arange(7.0)}


def test_a_rule_reads_the_call_of_its_class_alone() -> None:
    assert rule_of(Turned(), raw(Turned.__call__)) is RULE
    assert rule_of(Turned(), raw(Turned.setup)) is None
    assert rule_of(nn.Dense(3), raw(nn.Dense.__call__)) is None


def test_calls_are_noted_unless_the_layer_is_one_of_a_stack() -> None:
    x, values = np.ones((2, 5)), {"matrix": jnp.ones((7, 5)), "shift": jnp.ones(7)}
    module = Turned().bind({"params": values})
    stored = shapes_in(node())
    assert stored == {"matrix": (7, 5), "shift": (7,)}
    calls = Calls()
    calls.note(module, (x,), {}, stored)
    assert (calls.shapes, calls.refusal) == ([(2, 5)], "")
    for args, seen, reason in (
        ((x, x), stored, "more than its input"),
        ((x,), {**stored, "shift": (3, 7)}, "a stack of them"),
    ):
        calls = Calls()
        calls.note(module, args, {}, seen)
        assert reason in calls.refusal


def test_new_numbers_are_laid_out_and_boxed_as_the_old_ones() -> None:
    layer = RuledLayer(RULE, Turned(), node())
    op = layer.op()
    np.testing.assert_array_equal(op.weight, node()["matrix"].value)
    assert (layer.size, layer.dtype, layer.has_builder) == (42, jnp.float32, False)
    assert op.bias is not None
    filled = layer.refilled(Linear(2 * op.weight, op.bias + 1))
    assert filled["matrix"].names == ("out", "in")
    np.testing.assert_array_equal(filled["matrix"].value, 2 * node()["matrix"].value)
    np.testing.assert_array_equal(filled["shift"], np.arange(1.0, 8))
    index = layer.parameter({"matrix": 3, "shift": 8})
    assert (index.kernel, index.bias, index.shape) == (3, 8, (7, 5))


def test_a_layer_of_shapes_alone_is_blank() -> None:
    shapes = {
        "matrix": jax.ShapeDtypeStruct((7, 5), jnp.float32),
        "shift": jax.ShapeDtypeStruct((7,), jnp.float32),
    }
    op = RuledLayer(RULE, Turned(), shapes).op()
    assert op.weight.shape == (7, 5)
    assert not op.weight.any()


def test_without_a_builder_stock_layers_take_its_place() -> None:
    layer = RuledLayer(RULE, Turned(), node())
    first, second = np.ones((2, 5)), np.full((7, 2), 3.0)
    specs, params = layer.build((Linear(first), Linear(second, np.ones(7))))
    assert [spec.ruled for spec in specs] == [True, True]
    np.testing.assert_array_equal(params["lr1"]["kernel"], second.T)
    assert set(params["lr0"]) == {"kernel"}
    x = np.random.default_rng(1).standard_normal((3, 5))
    with jax.enable_x64(True):
        y = layer.run(specs, params, x)
    np.testing.assert_allclose(y, x @ (second @ first).T + 1, rtol=1e-6)


def test_a_builder_gives_a_bound_module() -> None:
    vars(sys.modules["home_of_the_rule"])["build"] = lambda chain, layer: nn.Dense(3)
    rule = LayerRule("linen", RULE.layer, read=RULE.read, build="home_of_the_rule:build")
    layer = RuledLayer(rule, Turned(), node())
    assert layer.has_builder
    with pytest.raises(Refused, match="gave no bound module"):
        layer.build((Linear(np.ones((7, 5))),))
