"""MACs of layers that cannot be read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

import rankfold as rf
from rankfold_jax.jaxpr.macs import counted


def test_a_cell_that_reads_its_parameters_itself_counts() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            y = nn.RNN(nn.OptimizedLSTMCell(16))(x)
            return nn.Dense(10, name="head")(y[:, -1])

    x = jnp.ones((1, 7, 12))
    model = Model().bind(Model().init(jax.random.key(0), x))
    plan = rf.plan(model, rf.Ratio(0.5), inputs=x)
    assert plan.macs is not None
    assert plan.macs[0] == 7 * (12 + 16) * 4 * 16 + 16 * 10
    with pytest.raises(rf.RankfoldError, match="smallest"):
        rf.plan(model, rf.Budget(macs=0.5), inputs=x)


def test_a_kernel_that_is_scaled_counts() -> None:
    class Scaled(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.kernel = nnx.Param(jax.random.normal(rngs.params(), (12, 20)))
            self.gain = nnx.Param(jnp.ones(20))
            self.head = nnx.Linear(20, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(x @ (self.kernel[...] * self.gain[...]))

    plan = rf.plan(Scaled(nnx.Rngs(0)), rf.Ratio(0.5), inputs=jnp.ones((3, 12)))
    assert plan[""].macs == (3 * 12 * 20, 3 * 12 * 20)


def test_loops_and_branches() -> None:
    def function(w: jax.Array, v: jax.Array, x: jax.Array, go: jax.Array) -> jax.Array:
        def body(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, ...], None]:
            own, x = carry
            return (own * 2.0, jnp.tanh(x @ own)), None

        (_, x), _ = jax.lax.scan(body, (w, x), None, length=5)
        x = jax.lax.cond(go, lambda x: x @ v @ v, lambda x: x @ (v + w), x)
        return jax.lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x @ w + 1.0, x)

    square, x = jnp.ones((4, 4)), jnp.ones((3, 4))
    closed = jax.make_jaxpr(function)(square, square, x, jnp.array(True))
    once = 3 * 4 * 4
    assert counted(closed, ["w", "v"]) == {"w": 5 * once + once, "v": 2 * once}


def test_a_loop_that_may_not_run_gives_its_initial_carry() -> None:
    def function(w: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 9.0, lambda y: w, x) @ v

    square = jnp.ones((4, 4))
    closed = jax.make_jaxpr(function)(square, square, square)
    assert counted(closed, ["w", "v"]) == {"v": 4 * 4 * 4}


def test_the_last_turn_of_a_scan_alone_gives_its_output() -> None:
    def function(w: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (w, None), x, None, length=2)[0] @ v

    square = jnp.ones((4, 4))
    assert not counted(jax.make_jaxpr(function)(square, square, square), ["w", "v"])


def test_the_test_of_a_loop_counts_as_often_as_its_body() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: (x @ w).sum() < 9.0, lambda x: x + 1.0, x)

    closed = jax.make_jaxpr(function)(jnp.ones((4, 5)), jnp.ones((3, 4)))
    assert counted(closed, ["w"]) == {"w": 3 * 4 * 5}


def test_every_shard_counts() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        rows = PartitionSpec(("a", "b"))
        specs = {"in_specs": (rows, PartitionSpec()), "out_specs": rows}
        return jax.shard_map(jnp.matmul, mesh=AbstractMesh((2, 3), ("a", "b")), **specs)(x, w)

    closed = jax.make_jaxpr(function)(jnp.ones((4, 5)), jnp.ones((12, 4)))
    assert counted(closed, ["w"]) == {"w": 12 * 4 * 5}


def test_what_is_made_of_parameters_alone_costs_nothing() -> None:
    closed = jax.make_jaxpr(lambda w, x: x + (w @ w).sum())(jnp.ones((4, 4)), jnp.ones(4))
    assert not counted(closed, ["w"])
