"""Layers replaced while a module runs: traces, copies and changes of the module."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

import rankfold as rf
from rankfold_jax.layouts.dense import DenseForm
from rankfold_jax.linen.interception import compressed, noting, specs_of
from rankfold_jax.linen.layers import StageSpec


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


class Jitted(nn.Module):
    """Blocks that were jitted once, when the module was defined."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return JittedBlock()(x)


class PlainBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(7)(nn.relu(nn.Dense(7)(x)))


JittedBlock = nn.jit(PlainBlock)


def test_a_trace_compiled_before_does_not_hide_the_compression() -> None:
    module, x = Jitted(), x_of(2, 7)
    variables = module.init(jax.random.key(0), x)
    model = module.bind(variables)
    output = model(x)
    small, again = (rf.compress(model, rf.Ranks(2), inputs=x) for _ in range(2))
    assert len(small.plan.replaced) == len(again.plan.replaced) == 2
    assert not np.allclose(small.model(x), output)
    reduced, stored = small.model.unbind()
    drawn = reduced.init(jax.random.key(0), x)
    assert jax.tree.structure(drawn) == jax.tree.structure(dict(stored))
    assert set(module.init(jax.random.key(0), x)["params"]["JitPlainBlock_0"]["Dense_0"]) == {
        "kernel",
        "bias",
    }


class Strided(nn.Module):
    stride: int = 1
    features: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(self.features, (3, 2), strides=self.stride, name="conv")(x)


def test_a_compressed_layer_is_made_as_it_was_when_compressed() -> None:
    x = x_of(2, 7, 5, 12)
    model = Strided().bind(Strided().init(jax.random.key(0), x))
    small, variables = rf.compress(
        model, rf.Ranks(4), inputs=x, methods="channel_svd"
    ).model.unbind()
    assert small.clone(stride=1).apply(variables, x).shape == (2, 7, 5, 16)
    for changed, word in (({"stride": 2}, "strides"), ({"features": 13}, "features")):
        with pytest.raises(rf.RankfoldError, match=f"{word} of compressed layer 'conv'"):
            small.clone(**changed).apply(variables, x)


SPECS = (
    StageSpec(DenseForm((5,), (2,)), use_bias=False),
    StageSpec(DenseForm((2,), (7,)), use_bias=True),
)


class Named(nn.Module):
    features: int = 7

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.features, name="dense")(x)


def replaced() -> nn.Module:
    return compressed(Named(), ((("dense",), SPECS, (("features", "7"),)),))


def test_stages_are_made_within_the_layer_and_their_paths_noted() -> None:
    small, x = replaced(), x_of(2, 5)
    drawn: dict[str, Any] = {}

    def init() -> None:
        drawn.update(jax.eval_shape(small.init, jax.random.key(0), x))

    assert noting(init) == {("dense",)}
    shapes = jax.tree.map(lambda leaf: leaf.shape, drawn["params"]["dense"])
    assert shapes == {
        "lr0": {"kernel": (5, 2)},
        "lr1": {"kernel": (2, 7), "bias": (7,)},
    }
    assert noting(lambda: jax.eval_shape(Named().init, jax.random.key(0), x)) == set()


def test_the_class_is_one_for_a_plan_and_is_found_again_by_pickle() -> None:
    small = replaced()
    assert type(small) is type(replaced())
    assert type(small).__name__ == "Named"
    assert isinstance(small, Named)
    other = pickle.loads(pickle.dumps(small))
    assert (other, type(other)) == (small, type(small))
    assert specs_of(other, ("dense",)) == SPECS
    assert specs_of(other, ("other",)) is None
    assert specs_of(Named(), ("dense",)) is None
