"""A compressed model computes what its original does, apart from the factorisation."""

import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import rankfold as rf

X = np.random.default_rng(1).standard_normal((3, 11)).astype(np.float32)
DIFFERS = "once it is replaced the model computes something else"


class Net(nnx.Module):
    """Two layers, and what is done with them."""

    def __init__(self, use: Callable[["Net", Any], Any], dtype: Any = jnp.float32) -> None:
        self.a = nnx.Linear(11, 11, rngs=nnx.Rngs(0), param_dtype=dtype)
        self.b = nnx.Linear(11, 7, rngs=nnx.Rngs(1), param_dtype=dtype)
        self.use = use

    def __call__(self, x: Any) -> Any:
        return self.use(self, x)


def kind_of(layer: object) -> str:
    match layer:
        case nnx.Linear() | nn.Dense():
            return "linear"
    return "other"


def by_exact_class(net: Any, x: Any) -> Any:
    for layer in (net.a, net.b):
        x = layer(x)
        if type(layer) is nnx.Linear:
            x = nnx.relu(x)
    return x


def by_number_of_arrays(net: Any, x: Any) -> Any:
    return net.b(net.a(x)) / len(jax.tree.leaves(nnx.state(net)))


def with_gradient_by_weight(net: Any, x: Any) -> Any:
    gradient = nnx.grad(lambda layer: (layer(x) ** 2).sum())(net.a)
    return net.b(net.a(x)) + sum(jnp.abs(g).mean() for g in jax.tree.leaves(gradient))


DIFFERENT: dict[str, tuple[Callable[[Any, Any], Any], set[str]]] = {
    "class": (lambda net, x: net.b(net.a(x)) * (2 if kind_of(net.a) == "linear" else 1), {"a"}),
    "exact class": (by_exact_class, {"a", "b"}),
    "either class": (
        lambda net, x: net.b(net.a(x)) * (2 if "linear" in map(kind_of, (net.a, net.b)) else 1),
        {"a", "b"},
    ),
    "number of arrays": (by_number_of_arrays, {"a", "b"}),
    "gradient by a weight": (with_gradient_by_weight, {"a"}),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("case", DIFFERENT)
def test_layers_are_left_alone_where_the_model_would_differ(case: str, inplace: bool) -> None:
    use, left = DIFFERENT[case]
    model = Net(use)
    before = model(X)
    small = rf.compress(model, rf.Ranks("full"), inputs=X, inplace=inplace)
    reasons = {layer.path: layer.reason for layer in small.plan.layers if layer.method is None}
    assert set(reasons) == left
    assert all(reason.startswith(DIFFERS) for reason in reasons.values())
    np.testing.assert_allclose(small.model(X), before, rtol=1e-4, atol=1e-5)


def test_a_plan_carried_out_leaves_them_alone_too() -> None:
    model = Net(DIFFERENT["class"][0])
    small = rf.apply(model, rf.plan(model, rf.Ranks("full"), inputs=X), inputs=X)
    assert [layer.path for layer in small.plan.replaced] == ["b"]


@pytest.mark.parametrize("x", [np.zeros_like(X), jax.ShapeDtypeStruct(X.shape, X.dtype)])
def test_inputs_without_numbers_tell_as_much(x: Any) -> None:
    small = rf.compress(Net(DIFFERENT["class"][0]), rf.Ranks("full"), inputs=x)
    assert small.plan["a"].reason.startswith(DIFFERS)


def test_a_layer_whose_values_are_needed_is_left_alone() -> None:
    def product(net: Any, x: Any) -> Any:
        return net.b(x @ nnx.state(net.a)["kernel"][...]) + net.a(x)[:, :7]

    small = rf.compress(Net(product), rf.Ranks(2), inputs=X)
    assert small.plan["a"].method is None
    assert small.plan["b"].method == "svd"


class Far(nnx.Module):
    """Many layers that a change in the last digit changes much: its output hangs on signs."""

    def __init__(self, dtype: Any) -> None:
        def layer(seed: int) -> nnx.Linear:
            return nnx.Linear(11, 11, rngs=nnx.Rngs(seed), dtype=dtype, param_dtype=dtype)

        self.layers = nnx.List([layer(seed) for seed in range(12)])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = x + jnp.sin(8 * layer(x))
        return x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_is_no_difference(dtype: Any) -> None:
    small = rf.compress(Far(dtype), rf.Ranks(3), inputs=X.astype(dtype))
    assert len(small.plan.replaced) == 12


def test_a_model_that_never_gives_the_same_is_compressed() -> None:
    rng = np.random.default_rng(0)
    model = Net(lambda net, x: net.b(net.a(x)) * rng.uniform())
    assert len(rf.compress(model, rf.Ranks(3), inputs=X).plan.replaced) == 2


@pytest.mark.parametrize("draw", [random.random, np.random.rand, np.random.default_rng(0).random])
def test_a_branch_drawn_as_the_model_is_traced_is_no_difference(draw: Callable[[], float]) -> None:
    model = Net(lambda net, x: net.b(net.a(x) * (3 if draw() < 0.5 else 1)))
    for _ in range(3):
        assert len(rf.compress(model, rf.Ranks(3), inputs=X).plan.replaced) == 2


def test_dropout_and_statistics_are_no_difference() -> None:
    class Noisy(nnx.Module):
        def __init__(self) -> None:
            self.a = nnx.Linear(11, 7, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(7, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.dropout(self.norm(self.a(x)))

    assert rf.compress(Noisy(), rf.Ranks(3), inputs=X).plan["a"].method == "svd"


class LinenNet(nn.Module):
    use: Callable[[Any, Any], Any]

    def setup(self) -> None:
        self.a, self.b = nn.Dense(11), nn.Dense(7)

    def __call__(self, x: Any) -> Any:
        return self.use(self, x)


def bound(use: Callable[[Any, Any], Any]) -> nn.Module:
    module = LinenNet(use)
    return module.bind(module.init(jax.random.key(0), X))


LINEN: dict[str, tuple[Callable[[Any, Any], Any], set[str], str]] = {
    "number of arrays": (
        lambda net, x: net.b(net.a(x)) * len(jax.tree.leaves(net.variables["params"])),
        {"a", "b"},
        DIFFERS,
    ),
    "shape of a kernel": (
        lambda net, x: net.b(net.a(x)) * net.a.variables["params"]["kernel"].shape[0],
        {"a"},
        "the compressed model fails with KeyError: 'kernel'",
    ),
}


@pytest.mark.parametrize("case", LINEN)
def test_layers_of_linen_are_left_alone_where_the_model_would_differ_or_fail(case: str) -> None:
    use, left, reason = LINEN[case]
    model = bound(use)
    small = rf.compress(model, rf.Ranks("full"), inputs=X)
    assert {layer.path for layer in small.plan.layers if layer.method is None} == left
    assert all(small.plan[path].reason.startswith(reason) for path in left)
    np.testing.assert_allclose(small.model(X), model(X), rtol=1e-4, atol=1e-4)  # type: ignore[operator]
