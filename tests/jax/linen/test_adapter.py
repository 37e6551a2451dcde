"""What the adapter for Linen asks of a model, and tells of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Linear
from rankfold_jax.linen.adapter import LinenAdapter

X = np.ones((2, 5), np.float32)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last = self.param("own", nn.initializers.ones, (7, 3))
        return nn.Dense(7, name="dense")(x) @ last


def bound(shapes: bool = False) -> Any:
    variables = jax.eval_shape(Net().init, jax.random.key(0), X)
    if not shapes:
        variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), variables)
    return Net().bind(variables)


def test_inputs_are_asked_for() -> None:
    with pytest.raises(rf.RankfoldError, match="shows its layers only when it is called"):
        rf.compress(bound(), rf.Ranks(2))


def test_an_unbound_module_is_a_clear_error() -> None:
    with pytest.raises(rf.RankfoldError, match=r"pass module.bind\(variables\)"):
        rf.compress(Net(), rf.Ranks(2), inputs=X)


def test_in_place_is_a_clear_error() -> None:
    with pytest.raises(rf.RankfoldError, match="immutable"):
        rf.compress(bound(), rf.Ranks(2), inputs=X, inplace=True)


def test_layers_and_other_modules_with_a_matrix_are_told_with_their_sizes() -> None:
    adapter, model = LinenAdapter(), bound()
    trace = adapter.trace(model, X)
    assert adapter.layers(model) == {"dense": "Dense", "": "Net"}
    assert trace.extents == {"dense": ((2,),)}
    assert adapter.size(model) == 5 * 7 + 7 + 7 * 3
    assert adapter.aliases(model, "dense") == ()
    assert adapter.why_not_interpolated(model, "dense") == ""


def test_a_layer_is_read_as_it_lies_and_blank_of_shapes_alone() -> None:
    for model in (bound(), bound(shapes=True)):
        adapter = LinenAdapter()
        adapter.trace(model, X)
        op = adapter.read(model, "dense")
        assert isinstance(op, Linear)
        assert op.weight.shape == (7, 5)
        assert adapter.parameters(model, "dense", op) == 5 * 7 + 7
        with pytest.raises(Refused):
            adapter.read(model, "")


def test_a_chain_is_run_and_put_in_the_layers_place() -> None:
    adapter, model = LinenAdapter(), bound()
    adapter.trace(model, X)
    rng = np.random.default_rng(0)
    first, second, bias = (rng.standard_normal(s) for s in ((2, 5), (7, 2), (7,)))
    built = adapter.build(model, "dense", (Linear(first), Linear(second, bias)))
    x = rng.standard_normal((3, 5))
    np.testing.assert_allclose(adapter.run(built, x), x @ (second @ first).T + bias, rtol=1e-5)
    small = adapter.replace(model, {"dense": built}, inplace=False)
    assert sorted(small.variables["params"]["dense"]) == ["lr0", "lr1"]
    chain = adapter.chain(model, small, "dense")
    np.testing.assert_allclose(chain[1].weight, second, rtol=1e-6)
    with pytest.raises(Refused, match="no chain stands in its place"):
        adapter.chain(model, model, "dense")
