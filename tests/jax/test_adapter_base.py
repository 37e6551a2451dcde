"""Compressed Flax models are expanded to dense layers again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import rankfold as rf

X = jax.random.normal(jax.random.key(0), (3, 8, 7, 5))


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(5, 12, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(12, 9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(12, (3, 3), strides=2)(x))
        return nn.Dense(9)(x.mean((1, 2)))


def check(model: Any, small: Any, kind: type) -> None:
    dense = small.expanded(model, inputs=X)
    assert type(dense) is kind
    np.testing.assert_allclose(dense(X), small.model(X), rtol=1e-4, atol=1e-5)
    again = rf.compress(dense, rf.Ranks(2), inputs=X)
    assert [layer.method for layer in again.plan.layers] == ["tucker2", "svd"]


def test_nnx() -> None:
    model = Net()
    small = rf.compress(model, rf.Ranks(3), inputs=X, methods=("svd", "tucker2"))
    small.model.head.layers[0].kernel[...] *= 1.5
    check(model, small, Net)


def test_linen() -> None:
    model = LinenNet()
    bound = model.bind(model.init(jax.random.key(1), X))
    small = rf.compress(bound, rf.Ranks(3), inputs=X, methods=("svd", "tucker2"))
    check(bound, small, LinenNet)
    assert jnp.isfinite(small.model(X)).all()
