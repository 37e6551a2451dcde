"""What one abstract forward pass of a Linen model shows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import rankfold as rf
from rankfold_jax.linen.tracing import Recording, applied, is_matrix, leaves


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


class Odd(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.WeightNorm(nn.Dense(6))(x)
        x = nn.Conv(6, (1,), mask=jnp.ones((1, 6, 6)))(x)
        x = nn.ConvLocal(6, (2,), padding="SAME")(x)
        own = self.param("own", nn.initializers.ones, (6, 6))
        dense = nn.Dense(6)
        y = dense(x)
        x = y + x @ dense.variables["params"]["kernel"]
        if self.is_initializing():
            nn.Dense(6, name="never")(x)
        return x @ own


REASONS = {
    "Dense_0": "its kernel goes into a",
    "Conv_0": "masked",
    "ConvLocal_0": "its kernel is not shared between positions",
    "Dense_1": "its kernel is also used",
    "never": "it is not called on the example inputs",
    "": "no rule reads a Odd",
}


def test_what_is_left_alone_has_a_reason(distance: Any) -> None:
    module, x = Odd(), x_of(2, 5, 6)
    model = module.bind(module.init(jax.random.key(0), x))
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    left = {layer.path: layer.reason for layer in small.plan.layers if layer.method is None}
    for path, reason in REASONS.items():
        assert left[path].startswith(reason), left[path]
    assert distance(small.model(x), model(x)) < 1e-5


def test_a_recording_has_layers_in_their_order_and_how_often_they_are_called() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, twice: bool) -> jax.Array:
            last = nn.Dense(5, name="last", use_bias=False)
            x = last(nn.relu(nn.Conv(5, (3,), name="conv")(x)))
            return last(x) if twice else x

    x = x_of(2, 9, 4)
    variables = jax.eval_shape(lambda key: Net().init(key, x, True), jax.random.key(0))
    model = Net().bind(variables)
    for twice in (False, True):
        recording = Recording(model, (x, twice))
        assert list(recording.layers) == [("conv",), ("last",)]
        assert recording.classes == {(): "Net", ("conv",): "Conv", ("last",): "Dense"}
        assert recording.calls[("last",)] == 1 + twice
        assert recording.matrices == {("conv",), ("last",)}
        assert recording.layers[("conv",)].bias
        assert not recording.layers[("last",)].bias
        assert recording.trace.extents == {
            "conv": ((2, 9),),
            "last": ((2, 9),) * (1 + twice),
        }
        assert recording.trace.outputs == {"last"}


def test_a_model_that_fails_on_its_inputs_is_named() -> None:
    module = nn.Dense(3)
    model = module.bind(jax.eval_shape(module.init, jax.random.key(0), x_of(2, 5)))
    with pytest.raises(rf.RankfoldError, match="inputs: the model fails on them"):
        Recording(model, x_of(2, 4))


def test_a_matrix_has_two_axes_and_leaves_come_in_their_boxes() -> None:
    box = nn.Partitioned(jnp.ones((2, 1, 3)), (None,) * 3)
    tree = {"b": {"kernel": box}, "a": jnp.ones((1, 3))}
    assert [path for path, _ in leaves(tree)] == [("a",), ("b", "kernel")]
    assert [is_matrix(value) for _, value in leaves(tree)] == [False, True]
    assert next(value for path, value in leaves(tree) if path[0] == "b") is box


def test_what_a_model_writes_is_dropped() -> None:
    module, x = nn.BatchNorm(use_running_average=False), x_of(4, 3)
    variables = module.init(jax.random.key(0), x)
    before = jax.tree.map(np.asarray, variables)
    y = applied(module, variables, x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, variables))
