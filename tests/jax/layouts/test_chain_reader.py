"""Chains in compressed models, read back as ops after their arrays have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Chain, Op, channels
from rankfold.ops.reference import reconstruct
from rankfold.testing.cases import decomposed
from rankfold_jax.linen.adapter import LinenAdapter
from rankfold_jax.nnx.adapter import NNXAdapter


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


IDS = jnp.arange(6).reshape(2, 3)
R = nnx.Rngs(0)
FLAT, IMAGE, HEADS = x_of(2, 11), x_of(2, 9, 9, 8), x_of(2, 3, 4, 5)
Case = tuple[Any, jax.Array, str]
NNX: dict[str, Callable[[], Case]] = {
    "Linear": lambda: (nnx.Linear(11, 13, rngs=R), FLAT, "svd"),
    "LinearGeneral": lambda: (
        nnx.LinearGeneral((4, 5), (6, 2), axis=(-2, -1), rngs=R),
        HEADS,
        "svd",
    ),
    "Einsum": lambda: (nnx.Einsum("bhd,hdo->bho", (4, 5, 7), (4, 7), rngs=R), HEADS[:, 0], "svd"),
    "Conv, strided": lambda: (nnx.Conv(8, 10, (3, 3), strides=2, rngs=R), IMAGE, "tucker2"),
    "Conv, separable": lambda: (nnx.Conv(8, 10, (3, 3), strides=2, rngs=R), IMAGE, "spatial_svd"),
    "Conv, cp": lambda: (nnx.Conv(8, 10, (3, 3), rngs=R), IMAGE, "cp"),
    "Conv, grouped": lambda: (
        nnx.Conv(8, 10, (3, 3), feature_group_count=2, rngs=R),
        IMAGE,
        "channel_svd",
    ),
    "ConvTranspose": lambda: (nnx.ConvTranspose(8, 6, (2, 3), strides=2, rngs=R), IMAGE, "tucker2"),
    "ConvTranspose, flipped": lambda: (
        nnx.ConvTranspose(8, 6, (4, 3), strides=(1, 2), transpose_kernel=True, rngs=R),
        IMAGE,
        "cp",
    ),
    "Embed": lambda: (nnx.Embed(13, 9, rngs=R), IDS, "svd"),
    "stack": lambda: (Ensemble(), x_of(4, 2, 11), "svd"),
}
LINEN: dict[str, Case] = {
    "Dense": (nn.Dense(13), FLAT, "svd"),
    "DenseGeneral": (nn.DenseGeneral((6, 2), axis=(-2, -1)), HEADS, "svd"),
    "DenseGeneral, batched": (nn.DenseGeneral(7, axis=-1, batch_dims=(0,)), HEADS[0], "svd"),
    "Einsum": (nn.Einsum((4, 5, 7), "bhd,hdo->bho"), HEADS[:, 0], "svd"),
    "Conv, strided": (nn.Conv(10, (3, 3), strides=2), IMAGE, "tucker2"),
    "Conv, separable": (nn.Conv(10, (3, 3), strides=2), IMAGE, "spatial_svd"),
    "Conv, grouped": (nn.Conv(10, (3, 3), feature_group_count=2), IMAGE, "channel_svd"),
    "ConvTranspose": (nn.ConvTranspose(6, (2, 3), strides=(2, 2)), IMAGE, "tucker2"),
    "ConvTranspose, cp": (nn.ConvTranspose(6, (4, 3), strides=(1, 2)), IMAGE, "cp"),
    "Embed": (nn.Embed(13, 9), IDS, "svd"),
    "stack": (
        nn.vmap(
            nn.Dense,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            in_axes=0,
            axis_size=4,
        )(13),
        x_of(4, 2, 11),
        "svd",
    ),
}


class Ensemble(nnx.Module):
    def __init__(self) -> None:
        made: Any = nnx.vmap(lambda rngs: nnx.Linear(11, 13, rngs=rngs), in_axes=0)
        split: Any = nnx.Rngs(0).split
        self.members = made(split(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        called: Any = nnx.vmap(lambda layer, y: layer(y))
        return jnp.asarray(called(self.members, x))


def filled(model: nnx.Module) -> nnx.Module:
    """Biases that are not zero."""
    for path, value in nnx.to_flat_state(nnx.state(model)):
        if path[-1] == "bias":
            value[...] = jnp.asarray(x_of(*value.shape))
    return model


class Wrapped(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.asarray(self.inner(x))


def near(a: Any, b: Any) -> None:
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def scaled(op: Op, before: Chain, after: Chain) -> None:
    assert len(before) == len(after) > 1
    near(reconstruct(op, after), 1.5 * reconstruct(op, before))
    for one, two in zip(before, after, strict=True):
        assert (one.bias is None) == (two.bias is None)
        if one.bias is not None:
            np.testing.assert_array_equal(one.bias, two.bias)
    assert (after[-1].bias is None) == (op.bias is None)


def nnx_case(name: str) -> tuple[nnx.Module, jax.Array, str, str]:
    layer, x, method = NNX[name]()
    model = filled(layer if isinstance(layer, Ensemble) else nnx.Sequential(layer))
    return model, x, method, "members" if isinstance(layer, Ensemble) else "layers.0"


def linen_case(name: str) -> tuple[nn.Module, jax.Array, str]:
    layer, x, method = LINEN[name]
    module = Wrapped(layer)
    variables = module.init(jax.random.key(0), x)
    bias = variables["params"]["inner"].get("bias")
    if bias is not None:
        variables["params"]["inner"]["bias"] = x_of(*bias.shape)
    return module.bind(variables), x, method


def same(op: Op, built: Chain, read: Chain) -> None:
    assert [channels(stage) for stage in read] == [channels(stage) for stage in built]
    near(reconstruct(op, read), reconstruct(op, built))
    if op.bias is not None:
        assert built[-1].bias is not None
        assert read[-1].bias is not None
        near(read[-1].bias, built[-1].bias)


@pytest.mark.parametrize("name", NNX)
def test_an_nnx_chain_is_read_as_it_is_now(name: str) -> None:
    model, x, method, path = nnx_case(name)
    adapter = NNXAdapter()
    adapter.trace(model, x)
    op = adapter.read(model, path)
    small = rf.compress(model, rf.Ranks(3), inputs=x, methods=method).model
    built = adapter.chain(model, small, path)
    stage: Any = dict(nnx.iter_modules(small))[(*_keys(path), "layers", 0)]
    kernel = stage.embedding if isinstance(stage, nnx.Embed) else stage.kernel
    kernel[...] = kernel[...] * 1.5
    scaled(op, built, adapter.chain(model, small, path))
    exact = rf.compress(model, rf.Ranks("full"), inputs=x, methods=method).model
    if method != "cp":
        near(reconstruct(op, adapter.chain(model, exact, path)), op.weight)


def _keys(path: str) -> tuple[Any, ...]:
    return tuple(int(key) if key.isdigit() else key for key in path.split("."))


@pytest.mark.parametrize("name", LINEN)
def test_a_linen_chain_is_read_as_it_is_now(name: str) -> None:
    model, x, method = linen_case(name)
    adapter = LinenAdapter()
    adapter.trace(model, x)
    op = adapter.read(model, "inner")
    small = rf.compress(model, rf.Ranks(3), inputs=x, methods=method).model
    built = adapter.chain(model, small, "inner")
    unbound, held = small.unbind()
    first = held["params"]["inner"]["lr0"]
    for key in first:
        first[key] = first[key] * 1.5
    scaled(op, built, adapter.chain(model, unbound.bind(held), "inner"))
    exact = rf.compress(model, rf.Ranks("full"), inputs=x, methods=method).model
    if method != "cp":
        near(reconstruct(op, adapter.chain(model, exact, "inner")), op.weight)


@pytest.mark.parametrize("name", NNX)
def test_an_nnx_chain_is_the_one_it_was_built_from(name: str) -> None:
    model, x, method, path = nnx_case(name)
    adapter = NNXAdapter()
    adapter.trace(model, x)
    chain = decomposed(adapter.read(model, path), method, full=False).chain
    small = adapter.replace(model, {path: adapter.build(model, path, chain)}, inplace=False)
    same(adapter.read(model, path), chain, adapter.chain(model, small, path))


@pytest.mark.parametrize("name", LINEN)
def test_a_linen_chain_is_the_one_it_was_built_from(name: str) -> None:
    model, x, method = linen_case(name)
    adapter = LinenAdapter()
    adapter.trace(model, x)
    chain = decomposed(adapter.read(model, "inner"), method, full=False).chain
    built = adapter.build(model, "inner", chain)
    small = adapter.replace(model, {"inner": built}, inplace=False)
    same(adapter.read(model, "inner"), chain, adapter.chain(model, small, "inner"))


def test_what_is_no_chain_is_refused() -> None:
    model, x, method, path = nnx_case("Linear")
    with pytest.raises(Refused, match="a Linear stands"):
        NNXAdapter().chain(model, model, path)
    small = rf.compress(model, rf.Ranks(3), inputs=x, methods=method).model
    small.layers[0].layers[0] = nnx.Linear(11, 4, rngs=R)
    with pytest.raises(Refused, match="channels"):
        NNXAdapter().chain(model, small, path)
    module = Wrapped(nn.Dense(13))
    bound = module.bind(module.init(jax.random.key(0), FLAT))
    adapter = LinenAdapter()
    adapter.trace(bound, FLAT)
    with pytest.raises(Refused, match="no chain"):
        adapter.chain(bound, bound, "inner")
