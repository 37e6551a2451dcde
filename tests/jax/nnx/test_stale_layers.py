"""Nothing stale stays at work in NNX: layers that static attributes hold besides."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import rankfold as rf
from rankfold_jax.nnx import adapter as nnx_adapter

X = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)


class Wrapper:
    def __init__(self, layer: nnx.Module) -> None:
        self.layer = layer

    def __call__(self, x: Any) -> Any:
        return self.layer(x)  # type: ignore[operator]


HOLDERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "closure": (lambda a: lambda x: a(x), lambda h, x: h(x)),
    "default": (lambda a: lambda x, f=a: f(x), lambda h, x: h(x)),
    "partial": (lambda a: functools.partial(lambda f, x: f(x), a), lambda h, x: h(x)),
    "object": (Wrapper, lambda h, x: h(x)),
    "list of functions": (lambda a: [lambda x: a(x)], lambda h, x: h[0](x)),
    "nnx.List of functions": (lambda a: nnx.List([lambda x: a(x)]), lambda h, x: h[0](x)),
    "bound method": (lambda a: a.__call__, lambda h, x: h(x)),
    "weak reference": (weakref.ref, lambda h, x: h()(x)),
    "kernel": (lambda a: functools.partial(lambda k, x: x @ k[...], a.kernel), lambda h, x: h(x)),
}


class Net(nnx.Module):
    """Calls a layer by what else holds it."""

    def __init__(self, kind: str) -> None:
        self.a = nnx.Linear(12, 13, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(13, 7, rngs=nnx.Rngs(1))
        make, self.use = HOLDERS[kind]
        self.held = make(self.a)

    def __call__(self, x: Any) -> Any:
        return self.b(self.use(self.held, x))


@pytest.mark.parametrize("kind", HOLDERS)
def test_no_copy_goes_on_using_layers_of_the_model(kind: str) -> None:
    for include in ("a", "b"):
        with pytest.raises(rf.RankfoldError, match=r"'held(\.0)?' .* 'a.*pass inplace=True"):
            rf.compress(Net(kind), rf.Ranks(2), include=include)


@pytest.mark.parametrize("kind", HOLDERS)
def test_in_place_a_layer_that_is_held_besides_is_left_alone(kind: str) -> None:
    model = Net(kind)
    layer, before = model.a, jax.tree.leaves(nnx.state(model.a))
    small = rf.compress(model, rf.Ranks(2), inputs=X, inplace=True)
    assert model.a is layer
    assert all(x is y for x, y in zip(jax.tree.leaves(nnx.state(layer)), before, strict=True))
    assert "also held by 'held" in small.plan["a"].reason
    assert small.plan["b"].method == "svd"
    assert not isinstance(model.b, nnx.Linear)


@pytest.mark.parametrize("step", ["exchanged", "checked"])
def test_an_interrupt_leaves_the_model_as_it_was(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nnx.Sequential(nnx.Linear(12, 13, rngs=nnx.Rngs(0)), nnx.relu)
    model.more = nnx.data((nnx.Linear(13, 7, rngs=nnx.Rngs(0)),))
    layers = model.layers[0], model.more[0]
    exchanged = nnx_adapter.exchanged
    calls = []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        result = exchanged(*args) if step == "checked" or len(calls) > 1 else None
        if len(calls) == 1:
            if step == "exchanged":
                model.layers[0] = args[1][id(layers[0])]
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(nnx_adapter, "exchanged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rf.compress(model, rf.Ranks(2), inplace=True)
    assert (model.layers[0], model.more[0]) == layers
