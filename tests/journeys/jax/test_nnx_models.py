from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rankfold as rf


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


class ResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(8, 8, (3, 3), rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = x + nnx.relu(block(x))
        return self.head(self.dropout(x.mean((1, 2))))


class UNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.down = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
        self.middle = nnx.Conv(6, 6, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(6, 4, (2, 2), strides=(2, 2), rngs=rngs)
        self.out = nnx.Conv(7, 2, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.up(nnx.relu(self.middle(nnx.relu(self.down(x)))))
        return self.out(jnp.concatenate([x, y], -1))


class LSTM(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(5, 6, rngs=rngs))
        self.gru = nnx.RNN(nnx.GRUCell(6, 4, rngs=rngs))
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.gru(self.rnn(x)))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.wide = nnx.Linear(6, 10, rngs=rngs)
        self.narrow = nnx.Linear(10, 6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.narrow(nnx.gelu(self.wide(x)))


class Scanned(nnx.Module):
    """A transformer whose blocks are one stack."""

    axis = 0

    def __init__(self, rngs: nnx.Rngs) -> None:
        axes = nnx.StateAxes({nnx.Param: self.axis, ...: 0})
        make = nnx.vmap(Block, in_axes=(nnx.StateAxes({...: 0}),), out_axes=axes, axis_size=4)
        self.blocks = make(rngs.split(4))
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        axes = nnx.StateAxes({nnx.Param: self.axis, ...: 0})

        @nnx.scan(in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def forward(block: Block, x: jax.Array) -> jax.Array:
            return block(x)

        return self.head(forward(self.blocks, x))


class ScannedLast(Scanned):
    axis = 1


MODELS: dict[str, tuple[Any, jax.Array]] = {
    "ResNet": (ResNet, x_of(2, 8, 8, 3)),
    "UNet": (UNet, x_of(2, 8, 8, 3)),
    "LSTM": (LSTM, x_of(2, 4, 5)),
    "transformer, scanned": (Scanned, x_of(2, 4, 6)),
    "transformer, scanned along axis 1": (ScannedLast, x_of(2, 4, 6)),
}


def model_of(name: str) -> tuple[nnx.Module, jax.Array]:
    make, x = MODELS[name]
    model = make(nnx.Rngs(0))
    model.eval()
    return model, x


compiled = nnx.jit(lambda model, x: model(x))
"""The output of a model, by one compilation in place of one for each operation."""


@functools.cache
def halved(name: str) -> rf.Compressed:
    model, x = model_of(name)
    return rf.compress(model, rf.Ranks(2), inputs=x, methods=("svd", "tucker2"))


@pytest.mark.parametrize(
    ("name", "traced"), [*((name, True) for name in MODELS), ("ResNet", False), ("LSTM", False)]
)
def test_full_rank_reproduces_the_model(name: str, traced: bool, distance: Any) -> None:
    model, x = model_of(name)
    small = rf.compress(model, rf.Ranks("full"), inputs=x if traced else None)
    assert all(layer.method for layer in small.plan.layers), str(small.plan)
    assert distance(compiled(small.model, x), compiled(model, x)) < 1e-5


@pytest.mark.parametrize("name", [name for name in MODELS if "axis" not in name])
def test_the_predicted_macs_are_those_of_the_result(name: str) -> None:
    small, x = halved(name), MODELS[name][1]
    again = rf.plan(small.model, rf.Ranks(1), inputs=x)
    assert small.plan.macs[1] == again.macs[0]
    held = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(small.model, nnx.Param)))
    assert small.plan.model_params[1] == held


@pytest.mark.parametrize("name", [name for name in MODELS if "axis" not in name])
def test_the_result_trains(name: str) -> None:
    small, x = nnx.clone(halved(name).model), MODELS[name][1]
    small.train()
    optimizer = nnx.Optimizer(small, optax.sgd(1e-2), wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.state(small, nnx.Param))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(small, optimizer, x)) for _ in range(8)]
    assert losses[-1] < losses[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, nnx.state(small, nnx.Param))
    assert np.mean(jax.tree.leaves(changed)) > 0.8


def test_a_trace_compiled_before_does_not_hide_the_compression() -> None:
    model, x = model_of("ResNet")
    forward = nnx.jit(lambda m, x: m(x))
    original = forward(model, x)
    small = rf.compress(model, rf.Ranks(1), inputs=x)
    assert not np.allclose(forward(small.model, x), original)
    np.testing.assert_allclose(forward(small.model, x), small.model(x), rtol=1e-4, atol=1e-5)


@functools.cache
def small_layers() -> tuple[nnx.Module, jax.Array]:
    """A compressed strided convolution and a compressed transposed one without a bias."""
    rngs = nnx.Rngs(0)
    conv = nnx.Conv(12, 16, (3, 2), strides=2, rngs=rngs)
    x = x_of(2, 7, 5, 12)
    model = nnx.Sequential(conv, nnx.ConvTranspose(16, 11, (2, 3), use_bias=False, rngs=rngs))
    return rf.compress(model, rf.Ranks((4, 5)), inputs=x, methods="tucker2").model, x


@pytest.mark.parametrize(
    ("name", "value"),
    [("strides", 1), ("padding", "VALID"), ("in_features", 3), ("kernel_size", (5, 5))],
)
def test_geometry_of_a_compressed_layer_cannot_be_set(name: str, value: Any) -> None:
    for layer in small_layers()[0].layers:
        before = getattr(layer, name)
        with pytest.raises(rf.RankfoldError, match=f"{name} of a compressed layer"):
            setattr(layer, name, value)
        assert getattr(layer, name) == before
        setattr(layer, name, before)


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_arrays_of_a_compressed_layer_cannot_be_set(name: str) -> None:
    for layer in small_layers()[0].layers:
        with pytest.raises(rf.RankfoldError, match=f"{name} of a compressed layer"):
            setattr(layer, name, nnx.Param(jnp.ones(11)))


def test_options_of_a_compressed_layer_are_those_of_its_stages() -> None:
    model, x = small_layers()
    copied = nnx.clone(model)
    np.testing.assert_array_equal(nnx.merge(*nnx.split(copied))(x), model(x))
    for layer in copied.layers:
        layer.dtype = jnp.bfloat16
    assert copied(x).dtype == jnp.bfloat16
    copied.set_attributes(dtype=jnp.float32)
    assert copied(x).dtype == model(x).dtype == jnp.float32


class Tied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(9, 6, rngs=rngs)
        self.a = nnx.Linear(6, 6, rngs=rngs)
        self.b = nnx.Linear(6, 6, rngs=rngs)
        self.b.kernel = self.a.kernel
        self.masked = nnx.Conv(6, 6, (1,), mask=jnp.ones((1, 6, 6)), rngs=rngs)
        self.normed = nnx.WeightNorm(nnx.Linear(6, 6, rngs=rngs), rngs=rngs)
        self.lora = nnx.LoRALinear(6, 6, lora_rank=2, rngs=rngs)
        self.read = nnx.Linear(6, 6, rngs=rngs)
        self.unused = nnx.Linear(6, 6, rngs=rngs)
        self.own = nnx.Param(jnp.ones((6, 6)))

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.b(self.a(self.embed(ids)))
        x = self.lora(self.normed(self.masked(x)))
        return self.embed.attend(x @ self.read.kernel[...] @ self.own[...])


REASONS = {
    "a": "tied: its kernel is also 'b.kernel'",
    "b": "tied: its kernel is also 'a.kernel'",
    "masked": "masked",
    "normed.layer_instance": "owned by nnx.WeightNorm",
    "lora": "LoRALinear has a call of its own",
    "read": "its kernel is read from outside the layer",
    "": "no rule reads a Tied",
}


def test_what_is_left_alone_has_a_reason(distance: Any) -> None:
    model, ids = Tied(nnx.Rngs(0)), jnp.arange(8).reshape(2, 4)
    small = rf.compress(model, rf.Ranks("full"), inputs=ids)
    left = {layer.path: layer.reason for layer in small.plan.layers if layer.method is None}
    left.pop("lora.lora", None)
    assert set(left) == set(REASONS)
    for path, reason in REASONS.items():
        assert left[path].startswith(reason)
    assert distance(small.model(ids), model(ids)) < 1e-4


def test_sharding_is_kept_and_adapted() -> None:
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("data", "model"))
    with jax.set_mesh(mesh):
        model = nnx.Sequential(nnx.Linear(6, 8, kernel_init=init, rngs=nnx.Rngs(0)))
        small = rf.compress(model, rf.Ranks(2), inputs=x_of(2, 6)).model
    first, last = small.layers[0].layers
    assert first.kernel.get_metadata()["out_sharding"] == ("data", None)
    assert last.kernel.get_metadata()["out_sharding"] == (None, "model")
    spec = jax.sharding.PartitionSpec
    assert first.kernel.get_value().sharding.spec == spec("data", None)
    assert last.kernel.get_value().sharding.spec == spec(None, "model")


def test_a_compressed_model_is_compressed_again(distance: Any) -> None:
    model, x = model_of("UNet")
    once = rf.compress(model, rf.Ranks("full"), inputs=x)
    twice = rf.compress(once.model, rf.Ranks("full"), inputs=x)
    assert len(twice.plan.replaced) > len(once.plan.replaced)
    assert distance(compiled(twice.model, x), compiled(model, x)) < 1e-5
