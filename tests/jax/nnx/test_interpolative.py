"""Interpolative stages in NNX: what they compute, store and are trained with."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import rankfold as rf
from rankfold_jax.nnx.interpolative import Interpolative

METHODS = ("svd_id", "tucker2_id")
TOKENS = jnp.arange(30).reshape(2, 15)


class Network(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(41, 18, rngs=rngs)
        self.conv = nnx.Conv(18, 22, (3,), strides=2, rngs=rngs)
        self.heads = nnx.LinearGeneral(22, (3, 10), rngs=rngs)
        self.last = nnx.LinearGeneral((3, 10), 5, axis=(-2, -1), rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = nnx.relu(self.conv(self.embed(tokens)))
        return self.last(nnx.relu(self.heads(x)))


@cache
def compressed() -> rf.Compressed:
    """The compressed `Network(0)`, which no test changes."""
    return rf.compress(Network(0), rf.Ratio(0.4), inputs=TOKENS, methods=METHODS)


def test_parameters_are_as_planned_and_floats_alone() -> None:
    small = compressed()
    methods = {layer.path: layer.method for layer in small.plan.layers}
    assert methods == {
        "embed": "svd_id",
        "conv": "tucker2_id",
        "heads": "svd_id",
        "last": None,
    }
    leaves = jax.tree.leaves(nnx.state(small.model))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == small.plan.model_params[1]
    compiled = nnx.jit(lambda model, x: model(x))(small.model, TOKENS)
    assert np.allclose(compiled, small.model(TOKENS), atol=1e-6)


def test_a_saved_model_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    small = compressed()
    small.save(tmp_path / "small")
    shapes = nnx.eval_shape(lambda: Network(1))
    assert np.array_equal(rf.load(shapes, tmp_path / "small")(TOKENS), small.model(TOKENS))


def test_a_plan_pins_pivots_so_that_states_fit_other_weights() -> None:
    small = compressed()
    other = rf.apply(Network(1), small.plan)
    nnx.update(other.model, nnx.state(small.model))
    assert np.array_equal(other.model(TOKENS), small.model(TOKENS))


def test_a_compressed_model_is_expanded() -> None:
    small = compressed()
    assert np.allclose(small.expanded(Network(0))(TOKENS), small.model(TOKENS), atol=1e-5)
    again = rf.plan(small.model, rf.Ranks(2))
    assert again["conv.layers.0"].reason.startswith("interpolative already")


def test_training_lowers_a_loss() -> None:
    small = nnx.clone(compressed().model)
    target = np.random.default_rng(0).standard_normal((2, 8, 5))
    optimizer = nnx.Optimizer(small, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: ((m(TOKENS) - target) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(small, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_table_of_a_tied_output_is_multiplied_with() -> None:
    small = compressed().model
    assert isinstance(small.embed.layers[1], Interpolative)
    query = np.random.default_rng(0).standard_normal((3, 18)).astype(np.float32)
    rows = small.embed(jnp.arange(41))
    assert np.allclose(small.embed.attend(query), query @ rows.T, atol=1e-5)


def test_options_are_those_of_the_layer() -> None:
    rngs, dtype = nnx.Rngs(0), jnp.bfloat16
    model = nnx.Sequential(
        nnx.Linear(20, 30, dtype=dtype, param_dtype=dtype, rngs=rngs),
        nnx.Linear(30, 6, dtype=dtype, param_dtype=dtype, rngs=rngs),
    )
    small = rf.compress(model, rf.Ranks(4), include="layers.0", methods="svd_id").model
    stage = small.layers[0].layers[1]
    assert isinstance(stage, Interpolative)
    assert stage.kernel[...].dtype == dtype
    assert small(jnp.ones((2, 20))).dtype == dtype
    small.layers[0].dtype = jnp.float16
    assert stage.dtype == jnp.float16


def test_layers_that_take_no_interpolative_stages_say_why() -> None:
    rngs = nnx.Rngs(0)

    class Odd(nnx.Module):
        def __init__(self) -> None:
            self.einsum = nnx.Einsum("ab,bc->ac", (12, 14), rngs=rngs)
            self.stack = nnx.Linear(14, 14, rngs=rngs)
            for name in ("kernel", "bias"):
                stacked = jnp.stack([getattr(self.stack, name)[...]] * 3)
                setattr(self.stack, name, nnx.Param(stacked))
            self.own = nnx.Linear(14, 11, dot_general=partial(lax.dot_general), rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.einsum(x)
            over = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.own(over(x, self.stack))

    plan = rf.plan(Odd(), rf.Ranks(3), inputs=jnp.ones((2, 12)), methods="svd_id")
    reasons = {layer.path: layer.reason for layer in plan.layers}
    assert "an einsum" in reasons["einsum"]
    assert "without groups" in reasons["stack"]
    assert "a way of its own" in reasons["own"]
