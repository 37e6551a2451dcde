"""Arrays of JAX are worked with where they are, if JAX computes in float64 there.

The CPU stands for an accelerator.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import rankfold as rf
from rankfold.linalg import arrays
from rankfold.ops import Conv, Linear

RNG = np.random.default_rng(2)
BATCHES = [RNG.standard_normal((12, 6, 6, 3)).astype(np.float32) for _ in range(3)]


class _Network(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 12, (3, 3), rngs=rngs)
        self.linear = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(nnx.relu(self.conv(x)).mean((1, 2)))


def test_a_model_is_compressed_alike_by_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {
        "inputs": BATCHES[0],
        "calibration": BATCHES,
        "methods": "channel_svd",
    }
    with jax.enable_x64(True):
        usual = rf.compress(_Network(), rf.Ratio(0.5), **options)
        monkeypatch.setattr(arrays, "JAX_BY_NUMPY", ())
        small = rf.compress(_Network(), rf.Ratio(0.5), **options)
    assert usual.plan.loss is not None
    assert small.plan.replaced
    assert small.plan.loss == pytest.approx(usual.plan.loss, rel=1e-4, abs=1e-6)
    for layer, other in zip(small.plan.layers, usual.plan.layers, strict=True):
        assert (layer.method, layer.ranks, layer.refit) == (other.method, other.ranks, other.refit)
        assert layer.predicted == pytest.approx(other.predicted, rel=1e-3, abs=1e-5)
    outputs, expected = small.model(BATCHES[0]), usual.model(BATCHES[0])
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)


def test_moments_lie_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = rf.gather(_Network(), BATCHES)
    monkeypatch.setattr(arrays, "JAX_BY_NUMPY", ())
    with jax.enable_x64(True):
        moments = rf.gather(_Network(), BATCHES)
        for path, layer in moments.items():
            for name in ("inputs", "mean", "grads"):
                array = getattr(layer, name)
                assert isinstance(array, jax.Array)
                assert array.shape == getattr(usual[path], name).shape
                assert array.dtype == np.float64


def test_arrays_stay_where_float64_is_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = jax.numpy.asarray(RNG.standard_normal((9, 7)), dtype="float32")
    kernel = jax.numpy.asarray(RNG.standard_normal((9, 7, 3, 3)), dtype="bfloat16")
    monkeypatch.setattr(arrays, "JAX_BY_NUMPY", ())
    assert isinstance(Linear(weight).weight, np.ndarray)
    with jax.enable_x64(True):
        assert isinstance(Linear(weight).weight, jax.Array)
        first, last = rf.truncated_svd(Linear(weight), 3)
        assert isinstance(last.weight, jax.Array)
        assert Conv(kernel).weight.dtype == np.float32
    monkeypatch.undo()
    with jax.enable_x64(True):
        expected_first, expected_last = rf.truncated_svd(Linear(weight), 3)
    assert isinstance(expected_last.weight, np.ndarray)
    np.testing.assert_allclose(
        last.weight @ first.weight, expected_last.weight @ expected_first.weight, atol=1e-5
    )
