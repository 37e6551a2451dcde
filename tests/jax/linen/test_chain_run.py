"""Chains run on their own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import lax

import rankfold as rf
from rankfold.ops import Linear
from rankfold_jax.linen.adapter import LinenAdapter
from rankfold_jax.linen.chain_run import run_chain


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


@dataclasses.dataclass  # with fields that can change, so that it has no hash
class Product:
    calls: int = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return lax.dot_general(*args, **kwargs)


def test_a_way_to_multiply_need_not_be_hashable(distance: Any) -> None:
    module, x = nn.Dense(5, dot_general=Product()), x_of(2, 7)
    model = module.bind(module.init(jax.random.key(0), x))
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert small.plan.replaced
    assert distance(small.model(x), model(x)) < 1e-5


def test_a_chain_of_a_stack_is_run_layer_by_layer_in_float64() -> None:
    class Members(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            members = nn.vmap(
                nn.Dense,
                variable_axes={"params": 1},
                split_rngs={"params": True},
                axis_size=3,
            )
            return members(7, name="members")(x)

    x = x_of(3, 2, 5)
    model = Members().bind(Members().init(jax.random.key(0), x))
    adapter = LinenAdapter()
    adapter.trace(model, x)
    rng = np.random.default_rng(0)
    first, second, bias = (rng.standard_normal(s) for s in ((6, 5), (21, 2), (21,)))
    chain = (Linear(first, groups=3), Linear(second, bias, groups=3))
    built = adapter.build(model, "members", chain)
    rows = rng.standard_normal((4, 15))
    expected = [
        row.reshape(3, 5)[i] @ (second[7 * i : 7 * i + 7] @ first[2 * i : 2 * i + 2]).T
        for row in rows
        for i in range(3)
    ]
    y = run_chain(built, rows)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, np.reshape(expected, (4, 21)) + bias, rtol=1e-5, atol=1e-6)
