"""Interpolative stages in Linen: what they compute, store and are trained with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import rankfold as rf

METHODS = ("svd_id", "tucker2_id")
TOKENS = jnp.arange(30).reshape(2, 15)


class Network(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        embed = nn.Embed(41, 18, name="embed")
        x = nn.relu(nn.Conv(22, (3,), name="conv")(embed(tokens)))
        x = nn.relu(nn.DenseGeneral((3, 10), name="heads")(x))
        x = nn.DenseGeneral(18, axis=(-2, -1), name="out")(x)
        return embed.attend(x)


def bound(seed: int) -> nn.Module:
    module = Network()
    return module.bind(module.init(jax.random.key(seed), TOKENS))


@cache
def compressed() -> rf.Compressed:
    return rf.compress(bound(0), rf.Ratio(0.4), inputs=TOKENS, methods=METHODS)


def test_parameters_are_as_planned_and_floats_alone() -> None:
    small = compressed()
    methods = {layer.path: layer.method for layer in small.plan.layers}
    assert methods["conv"] == "tucker2_id"
    assert methods["heads"] == methods["out"] == "svd_id"
    module, variables = small.model.unbind()
    assert set(variables) == {"params"}
    leaves = jax.tree.leaves(variables)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == small.plan.model_params[1]
    compiled = jax.jit(module.apply)(variables, TOKENS)
    assert np.allclose(compiled, small.model(TOKENS), atol=1e-5)


def test_a_table_and_products_with_it_are_of_one_chain() -> None:
    model = bound(0)
    small = rf.compress(model, rf.Ranks(7), inputs=TOKENS, include="embed", methods="svd_id")
    assert small.plan["embed"].method == "svd_id"
    full = rf.compress(model, rf.Ranks(7), inputs=TOKENS, include="embed", methods="svd")
    assert np.allclose(small.model(TOKENS), full.model(TOKENS), atol=1e-5)
    assert small.plan.macs[1] < full.plan.macs[1]


def test_a_saved_model_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    small = compressed()
    small.save(tmp_path / "small")
    loaded = rf.load(bound(1), tmp_path / "small", inputs=TOKENS)
    assert np.array_equal(loaded(TOKENS), small.model(TOKENS))


def test_a_plan_pins_pivots_so_that_variables_fit_other_weights() -> None:
    small = compressed()
    other = rf.apply(bound(1), small.plan, inputs=TOKENS)
    module, _ = other.model.unbind()
    actual = module.apply(small.model.variables, TOKENS)
    assert np.array_equal(actual, small.model(TOKENS))


def test_a_compressed_model_is_expanded() -> None:
    small = compressed()
    expanded = small.expanded(bound(0), inputs=TOKENS)
    assert np.allclose(expanded(TOKENS), small.model(TOKENS), atol=1e-5)


def test_gradients_are_those_of_floats_alone_and_lower_a_loss() -> None:
    module, variables = compressed().model.unbind()
    target = np.random.default_rng(0).standard_normal((2, 15, 41))

    @jax.jit
    def step(params: Any) -> Any:
        def loss(params: Any) -> Any:
            return ((module.apply({"params": params}, TOKENS) - target) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    params, losses = variables["params"], []
    for _ in range(20):
        value, params = step(params)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    drawn = module.init(jax.random.key(3), TOKENS)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, variables)
