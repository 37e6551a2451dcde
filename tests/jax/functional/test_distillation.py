from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import rankfold as rf
from rankfold import RankfoldError
from rankfold.calibration.batches import Calibration
from rankfold_jax.linen.adapter import LinenAdapter
from rankfold_jax.nnx.adapter import NNXAdapter

X = jax.random.normal(jax.random.key(1), (64, 7, 8, 2))
BATCHES = [X[start : start + 16] for start in range(0, 64, 16)]


class Network(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 12, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))


class Bound(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.relu(linen.Conv(12, (3, 3), name="conv")(x))
        x = linen.BatchNorm(use_running_average=True)(x)
        return linen.Dense(5, name="head")(x.mean((1, 2)))


def nnx_arrays(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def linen_arrays(model: linen.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.variables)]


def linen_model() -> linen.Module:
    module = Bound()
    return module.bind(module.init(jax.random.key(0), X[:1]))


@pytest.mark.parametrize(
    ("make", "arrays", "adapter", "loss"),
    [
        (Network, nnx_arrays, NNXAdapter(), "outputs"),
        (linen_model, linen_arrays, LinenAdapter(), "cross_entropy"),
    ],
)
def test_a_distilled_model_is_better_and_the_others_are_as_they_were(
    make: Any, arrays: Any, adapter: Any, loss: str
) -> None:
    model = make()
    small = rf.compress(model, rf.Ranks(3), inputs=X[:1])
    before = arrays(model), arrays(small.model)
    better = rf.distil(small, model, BATCHES, steps=40, loss=loss)
    for known, current in zip(before, (model, small.model), strict=True):
        assert all(map(np.array_equal, known, arrays(current)))
    after = arrays(better.model)
    assert [a.shape for a in after] == [a.shape for a in before[1]]
    assert not all(map(np.array_equal, before[1], after))
    calibration = Calibration.of(BATCHES, None, loss)
    first = adapter.divergence(model, small.model, calibration)[1]
    assert better.plan.loss[1] < 0.8 * first


def test_modes_statistics_and_random_states_are_those_of_the_compressed_model() -> None:
    model = Network()
    model.norm.mean[...] = jnp.arange(12.0)
    model.train()
    small = rf.compress(model, rf.Ranks(3), inputs=X[:1])
    better = rf.distil(small.model, model, BATCHES, steps=12)
    assert better is not small.model
    assert not better.drop.deterministic
    np.testing.assert_array_equal(better.norm.mean[...], jnp.arange(12.0))
    assert int(better.drop.rngs.count[...]) == int(model.drop.rngs.count[...])


def test_a_model_that_cannot_get_better_is_the_very_one_that_was_given() -> None:
    model = linen_model()
    assert rf.distil(model, model, BATCHES, steps=2) is model


def test_half_precision_is_trained_in_full_and_the_same_again() -> None:
    module = linen.Dense(5, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(2), (32, 12), jnp.bfloat16)
    model = module.bind(module.init(jax.random.key(0), x[:1]))
    small = rf.compress(model, rf.Ranks(2), inputs=x[:1])
    better = rf.distil(small.model, model, [x], steps=24)
    assert better is not small.model
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(better.variables)} == {"bfloat16"}
    again = rf.distil(small.model, model, [x], steps=24)
    assert all(map(np.array_equal, linen_arrays(better), linen_arrays(again)))


def test_models_of_two_frameworks_are_told_apart() -> None:
    with pytest.raises(RankfoldError, match="NNXAdapter is for the compressed model"):
        rf.distil(Network(), linen_model(), BATCHES)
