"""Layer rules: a plugin teaches the Flax adapters one more layer class."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Chain
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.registry import registry

HOME = "home_of_the_flax_rules"
FLAX = ["nnx", "linen"]


def standardised(w: Any) -> Any:
    """A kernel (*kernel, in, out) with mean 0 and variance 1 over all axes but the last."""
    axes = tuple(range(w.ndim - 1))
    return (w - w.mean(axes)) / jnp.sqrt(w.var(axes) + 1e-5)


def convolved(x: Any, w: Any) -> Any:
    return jax.lax.conv_general_dilated(
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class NNXPlain(nnx.Module):
    """y = x w + b."""

    def __init__(self, into: int, out: int, rngs: nnx.Rngs) -> None:
        self.w = nnx.Param(jax.random.normal(rngs.params(), (into, out)) / into**0.5)
        self.b = nnx.Param(jax.random.normal(rngs.params(), (out,)))

    def __call__(self, x: Any) -> Any:
        return x @ self.w[...] + self.b[...]


class NNXStandardised(nnx.Module):
    def __init__(self, into: int, out: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 4, into, out)))

    def __call__(self, x: Any) -> Any:
        return convolved(x, standardised(self.kernel[...]))


class NNXGained(NNXStandardised):
    def __init__(self, into: int, out: int, rngs: nnx.Rngs) -> None:
        super().__init__(into, out, rngs)
        self.gain = nnx.Param(jax.random.uniform(rngs.params(), (out,), minval=0.5))

    def __call__(self, x: Any) -> Any:
        return convolved(x, standardised(self.kernel[...]) * self.gain[...])


class NNXSubclass(nnx.Conv):
    """A stock convolution with a call of its own."""

    def __call__(self, x: Any) -> Any:
        return convolved(x, standardised(self.kernel[...]))


class NNXRenamed(nnx.Linear):
    """A stock layer by another name."""


class LinenPlain(nn.Module):
    into: int
    out: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        w = self.param("w", nn.initializers.lecun_normal(), (self.into, self.out))
        return x @ w + self.param("b", nn.initializers.normal(1.0), (self.out,))


class LinenSetUp(nn.Module):
    into: int
    out: int

    def setup(self) -> None:
        self.w = self.param("w", nn.initializers.lecun_normal(), (self.into, self.out))
        self.b = self.param("b", nn.initializers.normal(1.0), (self.out,))

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.b


class LinenStandardised(nn.Module):
    into: int
    out: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        shape = (3, 4, self.into, self.out)
        return convolved(x, standardised(self.param("kernel", nn.initializers.normal(1.0), shape)))


class LinenGained(nn.Module):
    into: int
    out: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        shape = (3, 4, self.into, self.out)
        kernel = standardised(self.param("kernel", nn.initializers.normal(1.0), shape))
        return convolved(x, kernel * self.param("gain", nn.initializers.uniform(1.0), (self.out,)))


def own(layer: Any, name: str) -> np.ndarray[Any, Any]:
    if isinstance(layer, nnx.Module):
        return np.asarray(getattr(layer, name)[...])
    return np.asarray(layer.variables["params"][name])


def read_plain(layer: Any) -> rf.Linear:
    return rf.Linear(own(layer, "w").T, own(layer, "b"))


def read_gained(layer: Any) -> rf.Conv:
    op = read_standardised(layer)
    return replace(op, weight=op.weight * own(layer, "gain")[:, None, None, None])


def read_standardised(layer: Any) -> rf.Conv:
    kernel = np.asarray(standardised(jnp.asarray(own(layer, "kernel"))))
    weight = np.moveaxis(kernel, (-1, -2), (0, 1))
    return rf.Conv(np.ascontiguousarray(weight), stride=2, padding="same")


def read_renamed(layer: Any) -> rf.Linear:
    return rf.Linear(own(layer, "kernel").T, own(layer, "bias"))


def build_plain(chain: Chain, layer: Any) -> Any:
    """The stock layers, made by the rule."""
    kernels = [op.weight.T for op in chain]
    if isinstance(layer, nnx.Module):
        made = [nnx.Linear(*k.shape, rngs=nnx.Rngs(0)) for k in kernels]
        for stage, kernel in zip(made, kernels, strict=True):
            stage.kernel[...] = jnp.asarray(kernel)
        made[-1].bias[...] = layer.b[...]
        return nnx.Sequential(*made)
    module = nn.Sequential([nn.Dense(k.shape[1]) for k in kernels])
    params = {
        f"layers_{i}": {"kernel": jnp.asarray(k), "bias": jnp.zeros(k.shape[1])}
        for i, k in enumerate(kernels)
    }
    params[f"layers_{len(kernels) - 1}"]["bias"] = layer.variables["params"]["b"]
    return module.bind({"params": params})


def build_wrongly(chain: Chain, layer: Any) -> Any:
    return build_plain((chain[0], chain[1].__class__(-chain[1].weight, chain[1].bias)), layer)


def fail(*arguments: Any) -> Any:
    raise RuntimeError("no such thing")


def decline(layer: Any) -> Any:
    raise Refused("it is in use")


def read_anything(*arguments: Any) -> str:
    return "a layer"


class NNXNet(nnx.Module):
    def __init__(self, kind: Any, into: int) -> None:
        rngs = nnx.Rngs(0)
        self.taught = kind(into, 13, rngs=rngs)
        self.head = nnx.Linear(13, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(nnx.relu(self.taught(x)))


class LinenNet(nn.Module):
    kind: Any
    into: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(5, name="head")(nn.relu(self.kind(self.into, 13, name="taught")(x)))


KINDS = {
    ("nnx", "plain"): NNXPlain,
    ("nnx", "standardised"): NNXStandardised,
    ("linen", "plain"): LinenPlain,
    ("linen", "set up"): LinenSetUp,
    ("linen", "standardised"): LinenStandardised,
    ("nnx", "gained"): NNXGained,
    ("linen", "gained"): LinenGained,
}
CONVOLUTIONS = ("standardised", "gained")


def size(model: Any) -> int:
    state = nnx.state(model, nnx.Param) if isinstance(model, nnx.Module) else model.variables
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def example(kind: str) -> Any:
    shape = (2, 9, 8, 11) if kind in CONVOLUTIONS else (7, 11)
    return jax.random.normal(jax.random.key(1), shape)


def network(flax: str, kind: str) -> Any:
    if flax == "nnx":
        return NNXNet(KINDS[flax, kind], 11)
    net = LinenNet(KINDS[flax, kind], 11)
    return net.bind(net.init(jax.random.key(0), example(kind)))


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers a rule for a class of this file with functions of this file, by name."""
    home = ModuleType(HOME)
    vars(home).update({name: value for name, value in globals().items() if name[0] != "_"})
    monkeypatch.setitem(sys.modules, HOME, home)

    def register(adapter: str, layer: type, read: str, build: str | None = None) -> None:
        made = LayerRule(
            adapter,
            f"{HOME}:{layer.__name__}",
            f"{HOME}:{read}",
            None if build is None else f"{HOME}:{build}",
        )
        monkeypatch.setattr(registry(), "rules", [*registry().rules, made])

    return register


def taught(rule: Callable[..., None], flax: str, kind: str, build: str | None = None) -> Any:
    read = f"read_{kind}" if kind in CONVOLUTIONS else "read_plain"
    rule(flax, KINDS[flax, kind], read, build)
    return network(flax, kind)


@pytest.mark.parametrize(("flax", "kind"), KINDS)
def test_a_rule_teaches_the_layer(rule: Callable[..., None], flax: str, kind: str) -> None:
    x = example(kind)
    assert rf.plan(network(flax, kind), rf.Ranks(2), inputs=x)["taught"].method is None
    model = taught(rule, flax, kind)
    small = rf.compress(model, rf.Ranks("full"), inputs=x, include="taught")
    layer = small.plan["taught"]
    assert layer.method is not None
    positions = 5 * 4 * 12 if kind in CONVOLUTIONS else 1
    assert layer.macs is not None
    assert layer.macs[0] == len(x) * positions * 11 * 13
    assert small.plan.model_params == (size(model), size(small.model))
    np.testing.assert_allclose(small.model(x), model(x), atol=2e-5)


@pytest.mark.parametrize(("flax", "kind"), [("nnx", "standardised"), ("linen", "plain")])
def test_what_a_rule_made_is_saved_and_loaded(
    rule: Callable[..., None], tmp_path: Path, flax: str, kind: str
) -> None:
    x = example(kind)
    model = taught(rule, flax, kind)
    small = rf.compress(model, rf.Ranks(2), inputs=x)
    small.save(tmp_path / "out")
    if flax == "nnx":
        fresh: Any = nnx.eval_shape(lambda: NNXNet(KINDS[flax, kind], 11))
    else:
        net = LinenNet(KINDS[flax, kind], 11)
        fresh = net.bind(jax.eval_shape(net.init, jax.random.key(0), x))
    loaded = rf.load(fresh, tmp_path / "out", inputs=x)
    np.testing.assert_array_equal(loaded(x), small.model(x))


@pytest.mark.parametrize("flax", FLAX)
def test_what_a_rule_builds_takes_the_layers_place(rule: Callable[..., None], flax: str) -> None:
    x = example("plain")
    model = taught(rule, flax, "plain", "build_plain")
    small = rf.compress(model, rf.Ranks("full"), inputs=x, include="taught")
    assert small.plan["taught"].method == "svd"
    np.testing.assert_allclose(small.model(x), model(x), atol=2e-5)


FAULTS = {
    "fail": ("fail", None, "the layer rule 'home_of_the_flax_rules:fail' failed"),
    "decline": ("decline", None, "it is in use"),
    "no op": ("read_anything", None, "gave str, not an op"),
    "build fails": ("read_plain", "fail", "failed"),
    "builds nothing": ("read_plain", "read_anything", "gave"),
    "builds wrongly": ("read_plain", "build_wrongly", "the built module"),
}


@pytest.mark.parametrize(
    ("flax", "fault"), [*(("nnx", fault) for fault in FAULTS), ("linen", "builds nothing")]
)
def test_a_fault_of_a_rule_is_the_layers_reason(
    rule: Callable[..., None], flax: str, fault: str
) -> None:
    read, build, reason = FAULTS[fault]
    rule(flax, KINDS[flax, "plain"], read, build)
    plan = rf.compress(network(flax, "plain"), rf.Ranks(2), inputs=example("plain")).plan
    assert plan["taught"].method is None
    assert reason in plan["taught"].reason
    assert plan["head"].method == "svd"


@pytest.mark.parametrize("flax", FLAX)
def test_a_layer_whose_numbers_a_rule_lays_out_is_refitted(
    rule: Callable[..., None], flax: str
) -> None:
    model, x = taught(rule, flax, "plain"), example("plain")
    batches = [jax.random.normal(jax.random.key(i), (32, 11)) for i in range(3)]
    small = rf.compress(model, rf.Ranks(4), inputs=x, calibration=batches, include="taught")
    assert small.plan["taught"].moments == "patches"
    assert small.plan["taught"].measured is not None
    stock = small.expanded(model, inputs=x)
    np.testing.assert_allclose(stock(x), small.model(x), atol=2e-5)


def test_a_layer_whose_numbers_a_rule_computes_has_no_moments(rule: Callable[..., None]) -> None:
    model, x = taught(rule, "nnx", "standardised"), example("standardised")
    batches = [jax.random.normal(jax.random.key(i), (8, 9, 8, 11)) for i in range(3)]
    plan = rf.compress(model, rf.Ranks(2), inputs=x, calibration=batches).plan
    assert plan["taught"].reason.startswith("it has no moments")
    assert plan["head"].moments == "patches"


def test_a_subclass_of_a_stock_layer_can_be_taught(rule: Callable[..., None]) -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.taught = NNXSubclass(11, 13, (3, 4), use_bias=False, rngs=rngs)
            self.head = nnx.Linear(13, 5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(self.taught(x))

    model, x = Net(), example("standardised")
    assert "call of its own" in rf.plan(model, rf.Ranks(2), inputs=x)["taught"].reason
    rule("nnx", NNXSubclass, "read_standardised")
    small = rf.compress(model, rf.Ranks("full"), inputs=x, include="taught")
    assert small.plan["taught"].method is not None
    np.testing.assert_allclose(small.model(x), model(x), atol=2e-5)


def test_a_stock_layer_by_another_name_counts_once(rule: Callable[..., None]) -> None:
    rule("nnx", NNXRenamed, "read_renamed")
    plan = rf.plan(NNXNet(NNXRenamed, 11), rf.Ranks(2), inputs=example("plain"))
    assert plan["taught"].macs[0] == 7 * 11 * 13


def test_a_parameter_that_others_read_keeps_its_layer(rule: Callable[..., None]) -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            self.taught = NNXPlain(11, 13, nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.taught(x) + self.taught.w[...].sum()

    rule("nnx", NNXPlain, "read_plain")
    plan = rf.plan(Net(), rf.Ranks(2), inputs=example("plain"))
    assert plan["taught"].reason == "its w is read from outside the layer"


@pytest.mark.parametrize("flax", FLAX)
def test_a_stack_of_layers_is_left_alone(rule: Callable[..., None], flax: str) -> None:
    x = example("plain")
    rule(flax, KINDS[flax, "plain"], "read_plain")
    if flax == "nnx":
        make = nnx.vmap(lambda rngs: NNXPlain(11, 13, rngs), in_axes=0, out_axes=0)

        class Net(nnx.Module):
            def __init__(self) -> None:
                self.taught = make(nnx.Rngs(0).split(3))

            def __call__(self, x: Any) -> Any:
                return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.taught, x)

        model: Any = Net()
    else:
        many = nn.vmap(
            LinenPlain,
            in_axes=None,
            axis_size=3,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        net = nn.Sequential([many(11, 13)])
        model = net.bind(net.init(jax.random.key(0), x))
    (layer,) = rf.plan(model, rf.Ranks(2), inputs=x).layers
    assert layer.method is None
    assert layer.reason
