"""NNX models as functions of their arrays."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rankfold.errors import Refused
from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.layouts.stacks import ObservedAxes
from rankfold_jax.nnx.pure_function import flow, layer_in, with_values

X = np.ones((2, 5), np.float32)


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        self.calls[...] += 1
        return self.fc(self.drop(x)) + self.calls[...]


def test_a_model_is_run_in_eval_mode_and_leaves_no_trace() -> None:
    model = Net()
    pure, inputs = flow(model, ["fc"]), Inputs(X)
    expected = np.asarray(model.fc(X)) + 1
    for _ in range(2):
        y = pure.function(pure.values, inputs, inputs.arrays)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert int(model.calls[...]) == 0
    assert not model.drop.deterministic


def test_layers_are_found_among_the_arrays() -> None:
    model = Net()
    pure = flow(model, ["fc"])
    index = pure.parameters["fc"]
    np.testing.assert_array_equal(pure.values[index.kernel], model.fc.kernel[...])
    assert index.bias is not None
    np.testing.assert_array_equal(pure.values[index.bias], model.fc.bias[...])
    assert sorted(pure.params) == sorted([index.kernel, index.bias])


def test_other_values_go_into_a_copy_in_that_order() -> None:
    model = Net()
    pure = flow(model, ["fc"])
    values = [np.zeros_like(v) if i in pure.params else v for i, v in enumerate(pure.values)]
    other = with_values(model, values)
    assert not np.asarray(other.fc.kernel[...]).any()
    assert np.asarray(model.fc.kernel[...]).any()


def test_a_layer_whose_arrays_are_not_what_it_says_is_refused() -> None:
    layer = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    assert layer_in(layer, ObservedAxes()).kernel is layer.kernel
    layer.kernel = nnx.Param(jnp.ones((4, 2)))
    with pytest.raises(Refused, match=r"not a stack of \(5, 3\)"):
        layer_in(layer, ObservedAxes())
