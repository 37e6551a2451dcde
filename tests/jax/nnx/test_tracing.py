"""What one abstract forward pass of an NNX model shows, and what it leaves."""

from typing import Any

import numpy as np
import pytest
from flax import nnx

import rankfold as rf
from rankfold.adapters.base import Trace
from rankfold_jax.nnx.tracing import Watch, array_holders, trace

X = np.random.default_rng(1).standard_normal((2, 11)).astype(np.float32)


def linear(inputs: int = 11, outputs: int = 11, **options: Any) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


class Sowing(nnx.Module):
    """A model that keeps its activations."""

    def __init__(self) -> None:
        self.fc = linear(11, 7)

    def __call__(self, x: Any) -> Any:
        y = self.fc(x)
        self.sow(nnx.Intermediate, "seen", y)
        return y


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_a_model_that_sows_is_traced_and_left_without_what_it_sowed() -> None:
    model = Sowing()
    small = rf.compress(model, rf.Ranks(2), inputs=X)
    assert small.plan["fc"].method == "svd"
    assert not hasattr(model, "seen")
    assert not hasattr(small.model, "seen")


class Net(nnx.Module):
    def __init__(self) -> None:
        self.fc, self.out = linear(), linear(11, 7)
        self.norm = nnx.LayerNorm(11, rngs=nnx.Rngs(0))
        self.own = nnx.Param(np.ones((7, 3), np.float32))

    def __call__(self, x: Any, how: str = "") -> Any:
        x = self.norm(self.fc(self.fc(x)))
        if how == "read":
            x = x @ self.fc.kernel[...]
        elif how == "shape":
            x = x * self.fc.kernel.shape[0]
        return self.out(x) @ self.own[...]


def traced(how: str) -> Trace:
    model = Net()
    return trace(model, array_holders(model), (X, how))[0]


def test_layers_have_an_extent_for_each_call_and_outputs_are_told() -> None:
    model = Net()
    assert list(array_holders(model)) == ["", "fc", "out"]
    result, seen = trace(model, array_holders(model), (X, ""))
    assert result.extents == {"fc": ((2,), (2,)), "out": ((2,),)}
    assert result.refusals == {}
    assert result.outputs == {""}
    assert set(seen) == {"fc", "out"}
    assert type(model.fc) is nnx.Linear


def test_a_kernel_that_is_read_from_outside_is_noticed_and_its_shape_is_not() -> None:
    assert traced("read").refusals["fc"] == "its kernel is read from outside the layer"
    assert traced("shape").refusals == {}


def test_the_layer_that_runs_is_the_innermost() -> None:
    watch = Watch()
    assert not watch.is_running("a")
    watch.running += ["a", "b"]
    assert watch.is_running("b")
    assert not watch.is_running("a")
    watch.called("a", linear(), (X, X), {})
    assert (watch.calls["a"], watch.refusals) == (1, {})  # no rule reads it
    watch.read("a", "kernel")
    watch.read("a", "bias")
    assert watch.refusals == {"a": "its kernel is read from outside the layer"}


def test_a_model_that_fails_on_its_inputs_is_named() -> None:
    with pytest.raises(rf.RankfoldError, match="inputs: the model fails on them"):
        trace(linear(), {}, X[:, :4])
