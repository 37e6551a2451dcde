"""What the two adapters for Flax have in common: expansion, and the check of what is built."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


def deep(framework: str, depth: int) -> tuple[Any, np.ndarray]:
    x = np.ones((2, 29), np.float32)  # a width of no other test, which is compiled here
    if framework == "nnx":
        return nnx.Sequential(*(nnx.Linear(29, 29, rngs=nnx.Rngs(i)) for i in range(depth))), x
    module = nn.Sequential([nn.Dense(29) for _ in range(depth)])
    return module.bind(module.init(jax.random.key(0), x)), x


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_chains_alike_are_checked_by_one_compilation(
    framework: str, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(depth: int) -> int:
        model, x = deep(framework, depth)
        caplog.clear()
        with jax.log_compiles():
            small = rf.compress(model, rf.Ranks(3), inputs=x)
        assert len(small.plan.replaced) == depth
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    assert compiled(2) > 2
    # Two programs are of this depth: the compressed model and the original it is compared with.
    assert compiled(5) == 2
