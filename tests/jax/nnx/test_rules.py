"""NNX layers that a layer rule reads."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rankfold.errors import Refused
from rankfold.ops import Linear
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.registry import registry
from rankfold_jax.nnx import rules


class Turned(nnx.Module):
    """A linear layer whose matrix is (out, in)."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.matrix = nnx.Param(jnp.asarray(rng.standard_normal((7, 5)), jnp.bfloat16), note="kept")
        self.shift = nnx.Param(jnp.arange(7.0))
        self.steps = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: Any) -> Any:
        return x @ self.matrix[...].T + self.shift[...]


def read(layer: Any) -> Linear:
    return Linear(np.asarray(layer.matrix[...], np.float32), np.asarray(layer.shift[...]))


RULE = LayerRule("nnx", "home_of_the_rule:Turned", read="home_of_the_rule:read")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    home = ModuleType("home_of_the_rule")
    vars(home).update(Turned=Turned, read=read, build=lambda chain, layer: "no module")
    monkeypatch.setitem(sys.modules, home.__name__, home)
    monkeypatch.setattr(registry(), "rules", [*registry().rules, RULE])


def test_a_rule_is_for_its_class_and_never_for_stock_layers() -> None:
    assert rules.rule_of(Turned()) is RULE
    assert rules.rule_of(nnx.Linear(5, 3, rngs=nnx.Rngs(0))) is None


def test_new_numbers_are_laid_out_as_the_old_ones_in_a_copy() -> None:
    layer = Turned()
    layout = rules.layer_of(RULE, layer)
    assert (layout.kernel, layout.bias) == (layer.matrix, layer.shift)
    op = layout.form.op(np.ones((1, 7, 5)), np.zeros((1, 7)))
    assert op.weight.tolist() == [[1] * 5] * 7
    kernel, bias = np.full((7, 5), 2.0), np.ones(7)
    other: Any = rules.refilled(RULE, layer, kernel, bias)
    assert (other.matrix.get_raw_value().dtype, other.matrix.note) == (jnp.bfloat16, "kept")
    assert set(np.asarray(other.matrix[...], float).ravel()) == {2.0}
    assert other.shift[...].tolist() == [1] * 7
    assert layer.shift[...].tolist() == list(range(7))


def test_a_layer_of_shapes_alone_is_blank() -> None:
    layer = nnx.eval_shape(Turned)
    op = rules.read(RULE, layer)
    assert op.weight.shape == (7, 5)
    assert not op.weight.any()


def test_without_a_builder_stock_layers_take_its_place_in_its_dtype() -> None:
    layer = Turned()
    assert rules.dtype_of(layer) == jnp.bfloat16
    first, second = np.ones((2, 5)), np.full((7, 2), 3.0)
    built: Any = rules.build(RULE, layer, (Linear(first), Linear(second, np.ones(7))))
    assert [stage.kernel.get_raw_value().dtype for stage in built.layers] == [jnp.bfloat16] * 2
    x = np.random.default_rng(1).standard_normal((3, 5))
    with jax.enable_x64(True):
        y = rules.runner(built, read(layer))(x)
    np.testing.assert_allclose(y, x @ (second @ first).T + 1, rtol=1e-6)


def test_a_builder_gives_a_module() -> None:
    rule = LayerRule("nnx", RULE.layer, read=RULE.read, build="home_of_the_rule:build")
    with pytest.raises(Refused, match="gave str, no module"):
        rules.build(rule, Turned(), (Linear(np.ones((7, 5))),))
