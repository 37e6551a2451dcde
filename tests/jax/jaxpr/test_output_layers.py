"""Layers whose output is an output of a Flax model: the same ones as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

import rankfold as rf
from rankfold_jax.linen.adapter import LinenAdapter
from rankfold_jax.nnx.adapter import NNXAdapter

Forward = Callable[[Any, Any], Any]
X = jnp.ones((3, 11))

BOTH: dict[str, Forward] = {
    "dict": lambda m, h: {"a": m.a(h), "b": [m.b(h)]},
    "concatenated": lambda m, h: jnp.concatenate([m.a(h), jnp.exp(m.b(h))], 1),
    "a loop that may not run": lambda m, h: jax.lax.while_loop(
        lambda y: y.sum() > 0, lambda y: m.b(h), m.a(h)
    ),
    "a sum of two": lambda m, h: m.a(h) + m.b(h),
    "a value and advantages": lambda m, h: m.a(h)[:, :1] + m.b(h) - m.b(h).mean(1, keepdims=True),
    "a mask": lambda m, h: jax.nn.sigmoid(m.a(h)) * m.b(h),
    "the mean of a stack": lambda m, h: jnp.stack([m.a(h), m.b(h)]).mean(0),
    "filled in": lambda m, h: jnp.zeros((3, 14)).at[:, :7].set(m.a(h)).at[:, 7:].set(m.b(h)),
}
ONE: dict[str, Forward] = {
    "softmax": lambda m, h: jax.nn.softmax(m.a(h)),
    "scaled": lambda m, h: m.a(h) / m.of("temperature"),
    "a bias added": lambda m, h: m.a(h) + m.of("gain"),
    "reshaped and cast": lambda m, h: m.a(h)[:, 1:].reshape(-1, 2, 3).astype(jnp.bfloat16),
    "normalized": lambda m, h: jax.nn.standardize(m.a(h)),
    "interpolated": lambda m, h: jax.image.resize(m.a(h), (6, 7), "bilinear"),
    "masked": lambda m, h: jnp.where(h[:, :7] > 0, m.a(h), -1e9),
    "chosen": lambda m, h: jax.lax.top_k(m.a(h), 2)[1],
    "relu": lambda m, h: nn.relu(m.a(h)),
    "beside a cache": lambda m, h: {"logits": m.a(h), "past_key_values": m.b(h)},
    "rematerialized": lambda m, h: jax.checkpoint(jax.nn.softplus)(m.a(h)),
    "sharded": lambda m, h: jax.shard_map(
        m.a,
        mesh=AbstractMesh((3,), ("d",)),
        in_specs=PartitionSpec("d"),
        out_specs=PartitionSpec("d"),
    )(h),
    "a normalization with weights": lambda m, h: m.norm(m.a(h)),
    "a gain for each channel": lambda m, h: m.a(h) * m.of("gain"),
    "a gain picked from several": lambda m, h: m.a(h) * m.of("gain")[1],
    "refined step by step": lambda m, h: (lambda y: y + m.a(h + y.mean()))(m.a(h)),
    "scores of pairs": lambda m, h: (m.a(h)[:, :, None] + m.of("pairs")).max(1),
    "beside a penalty": lambda m, h: {"y": m.a(h), "penalty": (m.b(h) ** 2).mean()},
    "two calls averaged": lambda m, h: (m.a(h) + m.a(-h)) / 2,
    "in a branch": lambda m, h: jax.lax.cond(h.sum() > 0, lambda y: y, lambda y: y * 2.0, m.a(h)),
}
NONE: dict[str, Forward] = {
    "a matrix of the model": lambda m, h: m.a(h) @ m.of("table"),
    "rows of a matrix of the model": lambda m, h: (m.a(h)[:, :, None] * m.of("table")).sum(1),
    "a product of two": lambda m, h: m.a(h) @ m.b(h).T,
    "a link of a residual chain": lambda m, h: (lambda y: y + m.square(nn.relu(y)))(m.a(h)),
    "a sum with what is mixed": lambda m, h: m.a(h) + (m.b(h) @ m.b(h).T).mean(1)[:, None],
}
CASES = [
    *((forward, {"a", "b"}) for forward in BOTH.values()),
    *((forward, {"a"}) for forward in ONE.values()),
    *((forward, set()) for forward in NONE.values()),
]
NAMES = [*BOTH, *ONE, *NONE]
SHAPES = {"gain": (7,), "temperature": (), "table": (7, 5), "pairs": (7, 7)}


class NNXHeads(nnx.Module):
    def __init__(self, forward: Forward) -> None:
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(11, 13, rngs=rngs)
        self.a, self.b = nnx.Linear(13, 7, rngs=rngs), nnx.Linear(13, 7, rngs=rngs)
        self.norm, self.square = nnx.LayerNorm(7, rngs=rngs), nnx.Linear(7, 7, rngs=rngs)
        for name, shape in SHAPES.items():
            setattr(self, name, nnx.Param(jnp.ones(shape)))
        self.given = forward

    def of(self, name: str) -> Any:
        return getattr(self, name)[...]

    def __call__(self, x: Any) -> Any:
        return self.given(self, nnx.relu(self.body(x)))


class LinenHeads(nn.Module):
    given: Forward

    def setup(self) -> None:
        self.body, self.a, self.b = nn.Dense(13), nn.Dense(7), nn.Dense(7)
        self.norm, self.square = nn.LayerNorm(), nn.Dense(7)
        self.parameters = {
            name: self.param(name, nn.initializers.ones, shape) for name, shape in SHAPES.items()
        }

    def of(self, name: str) -> Any:
        return self.parameters[name]

    def __call__(self, x: Any) -> Any:
        return self.given(self, nn.relu(self.body(x)))


def bound(module: nn.Module, x: Any) -> Any:
    return module.bind(jax.jit(module.init)(jax.random.key(0), x))


@pytest.mark.parametrize(("forward", "wanted"), CASES, ids=NAMES)
def test_outputs_are_seen_in_nnx(forward: Forward, wanted: set[str]) -> None:
    outputs = NNXAdapter().trace(NNXHeads(forward), X).outputs
    assert outputs is not None
    assert outputs - {""} == wanted  # the model itself holds a matrix


@pytest.mark.parametrize(("forward", "wanted"), CASES[::4], ids=NAMES[::4])
def test_outputs_are_seen_in_linen(forward: Forward, wanted: set[str]) -> None:
    outputs = LinenAdapter().trace(bound(LinenHeads(forward), X), X).outputs
    assert outputs is not None
    assert outputs - {""} == wanted


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return x + nn.Dense(16)(nn.gelu(nn.Dense(24)(x))), None


class Tied(nn.Module):
    """A language model whose outputs are products with its table."""

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        embed = nn.Embed(40, 16)
        blocks = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = blocks(name="blocks")(embed(ids), None)
        return embed.attend(nn.LayerNorm()(x))


def test_a_table_that_gives_the_outputs_is_left_alone() -> None:
    ids = jnp.arange(12).reshape(2, 6)
    plan = rf.plan(bound(Tied(), ids), rf.Ratio(0.3), inputs=ids)
    assert "its output is an output" in plan["Embed_0"].reason
    assert {layer.path for layer in plan.replaced} == {"blocks.Dense_0", "blocks.Dense_1"}


def test_the_last_turn_of_a_scan_gives_the_output() -> None:
    make = nnx.vmap(lambda rngs: nnx.Linear(12, 12, rngs=rngs), in_axes=0, out_axes=0)
    turn = nnx.scan(lambda layer, x: nnx.relu(layer(x)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)

    class Deep(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(12, 12, rngs=nnx.Rngs(0))
            self.layers = make(nnx.Rngs(0).split(3))

        def __call__(self, x: Any) -> Any:
            return turn(self.layers, self.first(x))

    assert NNXAdapter().trace(Deep(), jnp.ones((2, 12))).outputs == {"layers"}


@pytest.mark.parametrize("inputs", [None, X], ids=["untraced", "traced"])
def test_a_head_is_left_alone_unless_it_is_named(inputs: Any) -> None:
    model = nnx.Sequential(
        nnx.Linear(11, 24, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(24, 10, rngs=nnx.Rngs(1))
    )
    plan = rf.plan(model, rf.Ratio(0.3), inputs=inputs)
    assert [layer.path for layer in plan.replaced] == ["layers.0"]
    named = rf.plan(model, rf.Ratio(0.3), inputs=inputs, include="*")
    assert [layer.path for layer in named.replaced] == ["layers.0", "layers.2"]
