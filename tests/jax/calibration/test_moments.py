"""Moments of Flax layers on calibration data, against direct computations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import rankfold as rf
import rankfold.calibration.moments
from rankfold.adapters.base import Calibrates
from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Linear, Op
from rankfold.ops.reference import forward
from rankfold_jax.linen.adapter import LinenAdapter
from rankfold_jax.nnx.adapter import NNXAdapter


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def adapter_of(model: Any) -> Any:
    return NNXAdapter() if isinstance(model, nnx.Module) else LinenAdapter()


def bound(module: nn.Module, *inputs: Any) -> nn.Module:
    return module.bind(module.init(jax.random.key(0), *inputs))


def gather(
    model: Any, batches: Any, loss: Any = None, example: Any = None, seed: int = 0
) -> tuple[Mapping[str, LayerMoments], dict[str, Op]]:
    calibration = Calibration.of(batches, example, loss)
    adapter = adapter_of(model)
    adapter.trace(model, calibration.inputs[0])
    layers = {path: adapter.read(model, path) for path in adapter.layers(model)}
    rng = np.random.default_rng(seed)
    return adapter.moments(model, calibration, layers, rng, lambda item: None), layers


@pytest.mark.parametrize("adapter", [NNXAdapter(), LinenAdapter()])
def test_the_adapters_are_data_aware(adapter: Any) -> None:
    assert isinstance(adapter, Calibrates)


def rows_of(op: Op, x: Array) -> Array:
    """(rows, groups, d): what the reference gives for a weight that is the identity."""
    width = op.weight[0].size
    assert isinstance(op, Linear | Conv | ConvTranspose)
    eye = np.tile(np.eye(width), (op.groups, 1)).reshape(-1, *op.weight.shape[1:])
    y = forward(replace(op, weight=eye, bias=None), x)
    if not isinstance(op, Linear):
        y = np.moveaxis(y, 1, -1)
    return y.reshape(-1, op.groups, width)


def gram(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    return np.einsum("ngi,ngj->gij", rows, rows) / len(rows)


def to_op(op: Op, x: Array) -> Array:
    return x if isinstance(op, Linear) else np.moveaxis(x, -1, 1)


LAYERS: dict[str, tuple[Callable[[], Any], Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: (nnx.Linear, 5, 7, {}), lambda: nn.Dense(7), (3, 5)),
    "linear 4-d": (lambda: (nnx.Linear, 5, 7, {}), lambda: nn.Dense(7), (3, 2, 4, 5)),
    "conv": (
        lambda: (nnx.Conv, 6, 8, {"kernel_size": (3, 2), "padding": "SAME", "strides": (2, 1)}),
        lambda: nn.Conv(8, (3, 2), padding="SAME", strides=(2, 1)),
        (3, 9, 7, 6),
    ),
    "conv dilated in groups": (
        lambda: (
            nnx.Conv,
            6,
            8,
            {
                "kernel_size": (3, 2),
                "padding": ((1, 0), (2, 3)),
                "kernel_dilation": (2, 3),
                "feature_group_count": 2,
            },
        ),
        lambda: nn.Conv(
            8,
            (3, 2),
            padding=((1, 0), (2, 3)),
            kernel_dilation=(2, 3),
            feature_group_count=2,
        ),
        (3, 9, 7, 6),
    ),
    "conv circular": (
        lambda: (nnx.Conv, 3, 5, {"kernel_size": (4,), "padding": "CIRCULAR"}),
        lambda: nn.Conv(5, (4,), padding="CIRCULAR"),
        (3, 9, 3),
    ),
    "conv of a dilated input": (
        lambda: (nnx.Conv, 3, 5, {"kernel_size": (4,), "padding": 2, "input_dilation": 3}),
        lambda: nn.Conv(5, (4,), padding=2, input_dilation=3),
        (3, 6, 3),
    ),
    "transposed": (
        lambda: (nnx.ConvTranspose, 3, 5, {"kernel_size": (3, 2), "strides": (2, 3)}),
        lambda: nn.ConvTranspose(5, (3, 2), strides=(2, 3)),
        (3, 4, 5, 3),
    ),
    "transposed and flipped": (
        lambda: (
            nnx.ConvTranspose,
            3,
            5,
            {
                "kernel_size": (3, 2),
                "strides": (2, 3),
                "padding": ((1, 2), (0, 1)),
                "transpose_kernel": True,
            },
        ),
        lambda: nn.ConvTranspose(
            5, (3, 2), strides=(2, 3), padding=((1, 2), (0, 1)), transpose_kernel=True
        ),
        (3, 4, 5, 3),
    ),
}


def layer(name: str, framework: str) -> tuple[Any, Array]:
    in_nnx, in_linen, shape = LAYERS[name]
    x = normal(*shape)
    if framework == "linen":
        return bound(in_linen(), x), x
    kind, into, out, options = in_nnx()
    return kind(into, out, **options, rngs=nnx.Rngs(0)), x


IN_TURNS = list(zip(LAYERS, cycle(["nnx", "linen"]), strict=False))
"""The plain kinds of layers are checked in both frameworks by the conformance kit."""


@pytest.mark.parametrize(("name", "framework"), IN_TURNS)
def test_moments_are_those_of_a_direct_computation(name: str, framework: str) -> None:
    model, x = layer(name, framework)
    target = normal(*model(x).shape, seed=1)

    def loss(outputs: Any, batch: Any) -> Any:
        return (outputs * batch[1]).sum() / len(outputs)

    found, ops = gather(model, [(x[:2], target[:2]), (x[2:], target[2:])], loss, example=x)
    ((path, moments),) = found.items()
    op = ops[path]
    rows = rows_of(op, to_op(op, x))
    np.testing.assert_allclose(moments.inputs, gram(rows), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    expected = gram(target.reshape(-1, op.groups, len(op.weight) // op.groups))
    assert moments.grads is not None
    np.testing.assert_allclose(moments.grads, expected, rtol=1e-4, atol=1e-5)
    assert moments.samples == len(x)
    assert moments.positions_per_example == len(rows) / len(x)


def test_layers_with_several_axes() -> None:
    """The axes of a kernel are those of the rows, in their order."""
    x = normal(3, 2, 4, 5)
    cases: list[tuple[Any, Array, int]] = [
        (nnx.LinearGeneral((2, 4), (3, 7), axis=(1, 2), rngs=nnx.Rngs(0)), x, 1),
        (bound(nn.DenseGeneral((3, 7), axis=(1, 2)), x), x, 1),
        (bound(nn.DenseGeneral(7, axis=-1, batch_dims=(0,)), x), x, 3),
        (nnx.Einsum("bhse,hed->bshd", (2, 5, 7), (2, 7), rngs=nnx.Rngs(0)), x, 2),
        (bound(nn.Einsum((2, 5, 7), "bhse,hed->bshd"), x), x, 2),
    ]
    for model, given, groups in cases:
        found, ops = gather(model, given)
        ((path, moments),) = found.items()
        op = ops[path]
        assert op.groups == groups
        y = model(given)
        rows = {
            1: given.transpose(0, 3, 1, 2).reshape(-1, 1, 8),
            2: given.transpose(0, 2, 1, 3).reshape(-1, 2, 5),
            3: given.transpose(1, 2, 0, 3).reshape(-1, 3, 5),
        }[groups]
        outs = np.einsum("god,ngd->ngo", op.weight.reshape(groups, -1, op.weight.shape[1]), rows)
        shown = {1: y, 2: y, 3: np.moveaxis(np.asarray(y), 0, 2)}[groups]
        bias = 0 if op.bias is None else op.bias.reshape(groups, -1)
        np.testing.assert_allclose((outs + bias).reshape(-1), np.ravel(shown), rtol=1e-3)
        np.testing.assert_allclose(moments.inputs, gram(rows), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-5)


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(2, 6, (3, 2), feature_group_count=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)
        self.unused = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        hidden = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.drop(hidden).mean((1, 2)))


def test_a_model_is_run_in_eval_mode_and_stays_as_it_was() -> None:
    model = Small(nnx.Rngs(0))
    model.train()
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.Param, nnx.BatchStat)[0])
    count = int(model.drop.rngs.count[...])  # type: ignore[union-attr]
    x = normal(8, 7, 6, 2)
    found, _ = gather(model, [x[:5], x[5:]])
    assert list(found) == ["conv", "head"]
    assert not model.norm.use_running_average
    assert int(model.drop.rngs.count[...]) == count  # type: ignore[union-attr]
    after = nnx.state(model, nnx.Param, nnx.BatchStat)[0]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    model.eval()
    hidden = nnx.relu(model.norm(model.conv(x))).mean((1, 2))
    np.testing.assert_allclose(found["head"].inputs, gram(np.asarray(hidden)[:, None]), rtol=1e-4)
    assert found["head"].positions_per_example == 1
    assert found["conv"].positions_per_example == 7 * 6


def test_gradients_of_the_outputs_of_a_linear_model() -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs))
    found, ops = gather(model, normal(20000, 4))
    first, last = found["layers.0"].grads, found["layers.1"].grads
    weight = ops["layers.1"].weight
    assert first is not None
    assert last is not None
    np.testing.assert_allclose(first[0], weight.T @ weight, atol=0.06)
    np.testing.assert_allclose(last[0], np.eye(2), atol=0.05)


def test_few_examples_are_drawn_for_more_often() -> None:
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    grads = gather(model, normal(2, 4))[0][""].grads
    assert grads is not None
    assert abs(np.linalg.det(grads[0])) > 1e-3
    assert np.trace(grads[0]) == pytest.approx(2, rel=0.7)


@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_of_cross_entropy(classes: int) -> None:
    model = nnx.Linear(4, classes, rngs=nnx.Rngs(0))
    x = normal(20000, 4)
    scores = np.asarray(model(x), np.float64)
    if classes == 1:
        p = 1 / (1 + np.exp(-scores))
        expected = np.array([[(p * (1 - p)).mean()]])
    else:
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        expected = np.diag(p.mean(0)) - p.T @ p / len(p)
    found = gather(model, x, "cross_entropy")[0][""]
    assert found.grads is not None
    np.testing.assert_allclose(found.grads[0], expected, atol=0.02)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_an_embedding_is_counted(framework: str) -> None:
    ids = [np.array([[0, 1, 1]]), np.array([[4, 1, 0]])]
    rngs = nnx.Rngs(0)
    model: Any = nnx.Sequential(nnx.Embed(5, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs))
    if framework == "linen":
        model = bound(nn.Sequential([nn.Embed(5, 3), nn.Dense(2)]), ids[0])
    found, _ = gather(model, ids)
    table = next(iter(found.values()))
    np.testing.assert_allclose(table.inputs, [[2 / 6, 3 / 6, 0, 0, 1 / 6]])
    np.testing.assert_allclose(table.mean, table.inputs)
    assert table.positions_per_example == 3
    assert table.grads is not None
    assert table.grads.shape == (1, 3, 3)


def test_large_layers_are_gathered_in_smaller_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rankfold.calibration.moments, "PATCH_LIMIT", 8)
    monkeypatch.setattr(rankfold.calibration.moments, "FEATURE_LIMIT", 4)
    rngs = nnx.Rngs(0)
    conv, dense = nnx.ConvTranspose(3, 9, (2, 2), (2, 2), rngs=rngs), nnx.Linear(9, 2, rngs=rngs)
    x = normal(3, 2, 2, 3)
    found, ops = gather(nnx.Sequential(conv, dense), x)
    # Twelve numbers: the sketch has as many columns, and is the covariance.
    inputs = found["layers.0"].inputs
    assert isinstance(inputs, SeparableMoment)
    rows = rows_of(ops["layers.0"], np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(found["layers.0"].mean, rows.mean(0), rtol=1e-4, atol=1e-7)
    covariance = np.cov(rows[:, 0].T, bias=True)
    np.testing.assert_allclose(
        inputs.products(np.eye(12)[None])[0], covariance, rtol=1e-3, atol=1e-5
    )
    assert found["layers.0"].grads is not None
    assert found["layers.0"].grads.shape == (1, 9)
    features = np.square(np.asarray(conv(x))).reshape(-1, 9).mean(0)
    np.testing.assert_allclose(found["layers.1"].inputs[0], features, rtol=1e-4)


def test_a_shared_layer_sums_its_calls_up() -> None:
    layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    x = normal(70, 3)
    found, _ = gather(nnx.Sequential(layer, layer), x)
    rows = np.concatenate([x, layer(x)])[:, None]
    np.testing.assert_allclose(found["layers.0"].inputs, gram(rows), rtol=1e-4)
    assert found["layers.0"].positions_per_example == 2


def test_a_sample_is_enough() -> None:
    model = nnx.Conv(3, 4, (3, 3), padding="SAME", rngs=nnx.Rngs(0))
    x = normal(2, 160, 160, 3) + 1
    found, ops = gather(model, x)
    rows = rows_of(ops[""], np.moveaxis(x, -1, 1))
    full = gram(rows)
    moments = found[""]
    assert moments.positions_per_example == 160 * 160
    assert np.linalg.norm(moments.inputs - full) < 0.03 * np.linalg.norm(full)
    assert np.linalg.norm(moments.inputs - full) > 1e-6 * np.linalg.norm(full)


class ScannedNNX(nnx.Module):
    def __init__(self, axis: int = 0) -> None:
        keys = jax.random.split(jax.random.key(0), 3)
        self.layers = nnx.vmap(lambda key: nnx.Linear(4, 4, rngs=nnx.Rngs(key)), out_axes=axis)(
            keys
        )
        self.axis = nnx.static(axis)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(nnx.Carry, self.axis), out_axes=nnx.Carry)
        @nnx.remat
        def forward(x: Any, layer: Any) -> Any:
            return nnx.tanh(layer(x))

        return forward(x, self.layers)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, None]:
        return nn.tanh(nn.Dense(4)(x)), None


class ScannedLinen(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scanned = nn.scan(
            nn.remat(Step),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        return scanned()(x, None)[0]


@pytest.mark.parametrize("name", ["nnx", "nnx along 1", "linen", "linen along 1"])
def test_a_scanned_stack_has_the_moments_of_its_layers(name: str) -> None:
    x = normal(9, 5, 4)
    axis = 1 if name.endswith("1") else 0
    model: Any = ScannedNNX(axis) if "nnx" in name else bound(ScannedLinen(axis), x)
    target = normal(9, 5, 4, seed=1)

    def loss(outputs: Any, batch: Any) -> Any:
        return (outputs * batch[1]).sum() / 9

    found, ops = gather(model, [(x, target)], loss, example=x)
    ((path, stack),) = found.items()
    op = ops[path]
    assert op.groups == 3
    assert op.bias is not None
    weights, biases = op.weight.reshape(3, 4, 4), op.bias.reshape(3, 4)
    inputs = [x]
    for weight, bias in zip(weights, biases, strict=True):
        inputs.append(np.tanh(inputs[-1] @ weight.T + bias))
    gradient, gradients = target, []
    for weight, output in zip(weights[::-1], inputs[:0:-1], strict=True):
        gradients.append(gradient * (1 - output**2))
        gradient = gradients[-1] @ weight
    rows = np.stack(inputs[:3], 2).reshape(-1, 3, 4)
    np.testing.assert_allclose(stack.inputs, gram(rows), rtol=1e-4, atol=1e-5)
    assert stack.grads is not None
    back = np.stack(gradients[::-1], 2).reshape(-1, 3, 4)
    np.testing.assert_allclose(stack.grads, gram(back), rtol=1e-4, atol=1e-6)
    assert stack.positions_per_example == 5
    assert stack.samples == 9


class Members(nnx.Module):
    """Layers of one shape side by side on the same input."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.layers = nnx.vmap(lambda key: make(nnx.Rngs(key)))(
            jax.random.split(jax.random.key(0), 3)
        )

    def __call__(self, x: Any) -> Any:
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, x)


def test_a_stack_under_vmap_has_a_group_for_each_layer() -> None:
    dense = Members(lambda rngs: nnx.Linear(4, 5, rngs=rngs))
    conv = Members(
        lambda rngs: nnx.Conv(4, 6, (2,), padding="VALID", feature_group_count=2, rngs=rngs)
    )
    for model, x in ((dense, normal(6, 4)), (conv, normal(6, 9, 4))):
        target = normal(*model(x).shape, seed=1)

        def loss(outputs: Any, batch: Any) -> Any:
            return (outputs * batch[1]).sum() / 6

        found, ops = gather(model, [(x, target)], loss, example=x)
        ((path, moments),) = found.items()
        op = ops[path]
        one = replace(op, weight=op.weight[: len(op.weight) // 3], bias=None, groups=op.groups // 3)  # type: ignore[arg-type]
        rows = rows_of(one, to_op(op, x))
        np.testing.assert_allclose(
            moments.inputs, np.tile(gram(rows), (3, 1, 1)), rtol=1e-4, atol=1e-5
        )
        assert moments.grads is not None
        outs = np.moveaxis(target, 0, -2).reshape(-1, op.groups, len(op.weight) // op.groups)
        np.testing.assert_allclose(moments.grads, gram(outs), rtol=1e-4, atol=1e-5)


class Looping(nnx.Module):
    """Each layer in a construct of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.often, self.rarely = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.frozen = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        side = lax.stop_gradient(self.frozen(x))
        for _ in range(2):
            x = jax.jit(lambda x: nnx.tanh(self.often(x)))(x)
        return lax.cond(x.sum() > 1e9, lambda x: x, lambda x: self.rarely(x), x) + side


def test_calls_in_jit_cond_and_without_a_gradient() -> None:
    model = Looping(nnx.Rngs(0))
    x = normal(6, 4)
    adapter = NNXAdapter()
    layers = {path: adapter.read(model, path) for path in adapter.layers(model)}
    calibration = Calibration.of(x, None, None)
    found = adapter.moments(model, calibration, layers, np.random.default_rng(0), lambda _: None)
    assert {path: layer.positions_per_example for path, layer in found.items()} == {
        "often": 2,
        "rarely": 1,
        "frozen": 1,
    }
    assert found["frozen"].grads is None
    assert found["rarely"].grads is not None
    first = np.tanh(model.often(x))
    np.testing.assert_allclose(
        found["rarely"].inputs, gram(np.tanh(np.asarray(model.often(first)))[:, None]), rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_precisions(dtype: Any) -> None:
    def model(dtype: Any) -> Any:
        rngs = nnx.Rngs(0)
        options = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        return nnx.Sequential(
            nnx.Conv(3, 4, (3,), **options), nnx.relu, nnx.Linear(4, 2, **options)
        )

    wide, narrow = model(jnp.float32), model(dtype)
    nnx.update(narrow, jax.tree.map(lambda value: value.astype(dtype), nnx.state(wide)))
    x = normal(70, 8, 3)
    expected, _ = gather(wide, x)
    found, _ = gather(narrow, x.astype(dtype))
    for path in expected:
        assert found[path].inputs.dtype == np.float64
        np.testing.assert_allclose(found[path].inputs, expected[path].inputs, atol=0.03)


def test_the_same_seed_gives_the_same_moments() -> None:
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    first, second, third = (gather(model, normal(9, 4), seed=seed)[0][""] for seed in (0, 0, 1))
    assert first.grads is not None
    assert third.grads is not None
    np.testing.assert_array_equal(first.grads, second.grads)
    assert not np.allclose(first.grads, third.grads)


class Failing(nnx.Module):
    def __init__(self, what: str, rngs: nnx.Rngs) -> None:
        self.what = nnx.static(what)
        self.first, self.last = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.first(x)
        if self.what == "values":
            y = y / 0
        if self.what == "gradient":
            y = jnp.sqrt(y * 0)
        if self.what == "raise" and len(x) == 2:
            raise KeyError("no such thing")
        if self.what == "while":
            y = lax.while_loop(lambda y: y.sum() < -1e9, lambda y: y * 2, y)
        return self.last(y)


@pytest.mark.parametrize(
    ("what", "loss", "message"),
    [
        ("values", None, "layer 'last': its input"),
        ("gradient", None, "layer 'first': the gradient"),
        ("raise", None, "batch 1 with KeyError"),
        ("while", None, r"a while loop.*lax\.scan"),
        ("", lambda outputs, batch: outputs, r"shape \(4, 2\)"),
        ("", lambda outputs, batch: 1.0, "float"),
        ("", lambda outputs, batch: outputs.sum().item(), "fails on batch 0 with Conc"),
        ("", lambda outputs, batch: lax.stop_gradient(outputs).sum(), "differentiated"),
        ("", lambda outputs, batch: outputs.missing, "fails on batch 0 with AttributeError"),
    ],
)
def test_what_goes_wrong_is_named(what: str, loss: Any, message: str) -> None:
    model = Failing(what, nnx.Rngs(0))
    with pytest.raises(RankfoldError, match=message):
        gather(model, [normal(4, 3), normal(2, 3)], loss)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_batches_that_do_not_fit_are_named(framework: str) -> None:
    x = normal(4, 3)
    model: Any = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    if framework == "linen":
        model = bound(nn.Dense(2), x)
    with pytest.raises(RankfoldError, match="no batch"):
        rf.gather(model, [], inputs=x)
    with pytest.raises(RankfoldError, match="batch 1"):
        rf.gather(model, [x, normal(4, 5)], inputs=x)
