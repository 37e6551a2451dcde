"""What the adapter for NNX tells of a model, and puts into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Linear
from rankfold_jax.nnx.adapter import NNXAdapter

X = np.ones((2, 5), np.float32)


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = self.again = nnx.Linear(5, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(5, rngs=rngs)
        self.own = nnx.Param(np.ones((5, 3), np.float32))
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.drop(self.norm(self.again(self.first(x)))) @ self.own[...]


def chain() -> tuple[Linear, Linear]:
    rng = np.random.default_rng(0)
    return Linear(rng.standard_normal((2, 5))), Linear(rng.standard_normal((5, 2)), np.ones(5))


def test_layers_are_told_once_with_their_further_paths() -> None:
    adapter, model = NNXAdapter(), Net()
    assert adapter.layers(model) == {"": "Net", "first": "Linear"}
    assert adapter.aliases(model, "first") == ("again",)
    assert adapter.size(model) == 5 * 5 + 5 + 2 * 5 + 5 * 3
    assert adapter.parameters(model, "first", adapter.read(model, "first")) == 30
    assert adapter.why_not_interpolated(model, "first") == ""
    assert model in adapter.parts(model)


def test_a_shared_layer_is_replaced_in_both_places_and_put_back_as_one() -> None:
    adapter, model = NNXAdapter(), Net()
    layer = model.first
    built = adapter.build(model, "first", chain())
    small = adapter.replace(model, {"first": built}, inplace=False)
    assert small.first is small.again is not layer
    assert model.first is model.again is layer
    first, second = adapter.chain(model, small, "first")
    np.testing.assert_allclose(first.weight, chain()[0].weight, rtol=1e-6)
    assert second.bias is not None
    with pytest.raises(Refused, match="a Linear stands in its place"):
        adapter.chain(model, model, "first")
    assert adapter.replace(model, {"first": built}, inplace=True) is model
    assert model.again is built


def test_a_chain_is_run_in_float64() -> None:
    adapter, model = NNXAdapter(), Net()
    built = adapter.build(model, "first", chain())
    x = np.random.default_rng(1).standard_normal((3, 5))
    first, second = chain()
    y = adapter.run(built, x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, x @ (second.weight @ first.weight).T + 1, rtol=1e-5, atol=1e-6)


def test_the_mode_of_the_model_is_kept() -> None:
    for training in (True, False):
        model = Net()
        (model.train if training else model.eval)()
        small = rf.compress(model, rf.Ranks(2)).model
        assert small.drop.deterministic is not training
        assert model.drop.deterministic is not training
