"""Two runs of a Flax model side by side: what the layers met are given, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import rankfold as rf
from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import RegressionSums
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding, Linear, Op, blank, of_groups
from rankfold.testing.visits import Visits
from rankfold_jax.linen.adapter import LinenAdapter
from rankfold_jax.linen.params import Refilled
from rankfold_jax.nnx.adapter import NNXAdapter


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def bound(module: nn.Module, *inputs: Any) -> nn.Module:
    return module.bind(module.init(jax.random.key(0), *inputs))


def sequential(*layers: Any) -> nnx.Module:
    return nnx.Sequential(*layers)


def adapter_for(model: Any, inputs: Any) -> Any:
    adapter: Any = NNXAdapter() if isinstance(model, nnx.Module) else LinenAdapter()
    adapter.trace(model, inputs)
    return adapter


class Met:
    """Follows a model and keeps what its layers are given."""

    def __init__(
        self,
        model: Any,
        batches: Any,
        chain: Callable[[Op], Chain],
        *,
        sequential: bool = True,
        only: tuple[str, ...] = (),
    ) -> None:
        calibration = Calibration.of(batches, None, None)
        self.adapter = adapter_for(model, calibration.inputs[0])
        found = {path: self.adapter.read(model, path) for path in self.adapter.layers(model)}
        self.ops: Mapping[str, Op] = {p: op for p, op in found.items() if not only or p in only}
        self.joints: dict[str, tuple[RegressionSums | None, RegressionSums | None]] = {}
        self.parts: dict[
            str, list[tuple[tuple[int, ...], RegressionSums | None, RegressionSums | None]]
        ] = {}

        def visit(
            path: str,
            fit: RegressionSums | None,
            held: RegressionSums | None,
            groups: Sequence[int] | None = None,
            /,
        ) -> Chain:
            op = self.ops[path]
            if groups is None:
                assert path not in self.joints
                self.joints[path] = fit, held
                return chain(op)
            self.parts.setdefault(path, []).append((tuple(groups), fit, held))
            return chain(of_groups(op, groups, op.groups))

        self.errors = self.adapter.run_paired(
            model,
            calibration,
            self.ops,
            Visits(visit),
            sequential=sequential,
            rng=np.random.default_rng(0),
        )


def itself(op: Op) -> Chain:
    return (op,)


def truncated(op: Op, rank: int = 2) -> Chain:
    """The layer with the best weight of a rank, in one piece."""
    flat = op.weight.reshape(len(op.weight), -1)
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    s[rank:] = 0
    return (replace(op, weight=((u * s) @ v).reshape(op.weight.shape)),)


class ResidualNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(6, 6, (3, 3), feature_group_count=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.stem(x))
        x = x + nnx.relu(self.norm(self.conv(x)))
        return self.head(self.drop(x).mean((1, 2)))


class ResidualLinen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(6, (3, 3), name="stem")(x))
        y = nn.Conv(6, (3, 3), feature_group_count=2, use_bias=False, name="conv")(x)
        x = x + nn.relu(nn.BatchNorm(use_running_average=True)(y))
        return nn.Dense(5, name="head")(nn.Dropout(0.5, deterministic=True)(x).mean((1, 2)))


def residual(framework: str) -> Any:
    if framework == "linen":
        return bound(ResidualLinen(), normal(1, 9, 8, 3))
    return ResidualNNX(nnx.Rngs(0))


ORDER = ["stem", "conv", "head"]


@pytest.mark.parametrize(("framework", "sequential"), [("nnx", True), ("linen", False)])
def test_the_layers_themselves_change_nothing(framework: str, sequential: bool) -> None:
    model = residual(framework)
    met = Met(model, [normal(n, 9, 8, 3) for n in (5, 3)], itself, sequential=sequential)
    assert list(met.joints) == ORDER
    assert met.errors == dict.fromkeys(ORDER, 0.0)
    for path in ORDER:
        fit, held = met.joints[path]
        assert fit is not None
        assert held is not None
        assert fit.count == 3 * held.count


@pytest.mark.parametrize(("framework", "sequential"), [("nnx", False), ("linen", True)])
def test_sums_and_errors_are_those_of_a_direct_computation(
    sequential: bool, framework: str
) -> None:
    batches = [normal(6, 5), normal(5, 5)]
    model: Any = nnx.Sequential(
        nnx.Linear(5, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 4, rngs=nnx.Rngs(1))
    )
    if framework == "linen":
        model = bound(nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(4)]), batches[0])
    met = Met(model, batches, truncated, sequential=sequential)
    (first, one), (last, two) = met.ops.items()
    x = np.concatenate(batches)

    def run(op: Op, x: Array) -> Array:
        assert op.bias is not None
        return x @ op.weight.T + op.bias

    y, y_hat = run(one, x), run(truncated(one)[0], x)
    inner = np.maximum(y_hat if sequential else y, 0)
    z, z_hat = run(two, np.maximum(y, 0)), run(truncated(two)[0], inner)
    for path, a, b in ((first, y, y_hat), (last, z, z_hat)):
        expected = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert met.errors[path] == pytest.approx(float(expected), rel=1e-4)
    fit, held = met.joints[last]
    kept = np.arange(11) % 4 == 3
    for joint, rows in ((fit, ~kept), (held, kept)):
        assert joint is not None
        a, b = inner[rows].astype(np.float64), z[rows].astype(np.float64)
        assert joint.count == len(a)
        for name, expected in {
            "xx": a.T @ a,
            "yx": b.T @ a,
            "square": np.square(b).sum(),
            "x": a.sum(0),
            "y": b.sum(0),
        }.items():
            np.testing.assert_allclose(getattr(joint, name)[0], expected, rtol=1e-4, atol=1e-4)
    assert fit is not None
    assert fit.yy is None
    assert held is not None
    assert held.yy is not None
    np.testing.assert_allclose(held.yy[0], z[kept].T @ z[kept], rtol=1e-4, atol=1e-4)


def test_losses_before_reach_the_layers_after() -> None:
    model = residual("nnx")
    x = normal(8, 9, 8, 3)
    alone, both = (Met(model, x, truncated, sequential=s) for s in (False, True))
    assert both.errors["head"] > alone.errors["head"]
    assert both.errors["stem"] == pytest.approx(alone.errors["stem"])
    first, second = alone.joints["head"][0], both.joints["head"][0]
    assert first is not None
    assert second is not None
    assert not np.allclose(first.xx, second.xx)
    np.testing.assert_allclose(first.square, second.square, rtol=1e-5)


def test_convolutions_meet_their_patches() -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(3, 6, (3,), strides=2, feature_group_count=3, padding="CIRCULAR", rngs=rngs),
        nnx.ConvTranspose(6, 4, (3,), strides=2, padding="SAME", rngs=rngs),
    )
    met = Met(model, normal(12, 16, 3), itself)
    for path, op in met.ops.items():
        fit = met.joints[path][0]
        assert fit is not None
        assert op.bias is not None
        weight = op.weight.reshape(op.groups, len(op.weight) // op.groups, -1)
        bias = op.bias.reshape(op.groups, -1)
        y = np.einsum("god,gd->go", weight, fit.x) + fit.count * bias
        np.testing.assert_allclose(fit.y, y, rtol=1e-4, atol=1e-3)
        cross = weight @ fit.xx + bias[:, :, None] * fit.x[:, None, :]
        np.testing.assert_allclose(fit.yx, cross, rtol=1e-4, atol=1e-3)


def test_many_positions_are_sampled() -> None:
    model = nnx.Sequential(nnx.Conv(2, 3, (3, 3), rngs=nnx.Rngs(0)))
    met = Met(model, normal(4, 70, 60, 2), truncated)
    fit, held = met.joints["layers.0"]
    assert fit is not None
    assert held is not None
    assert (fit.count, held.count) == (3 * 3200, 3200)
    op = met.ops["layers.0"]
    np.testing.assert_allclose(fit.yx[0], op.weight.reshape(3, -1) @ fit.xx[0], rtol=1e-3, atol=1)


@pytest.mark.parametrize(("examples", "kept"), [(1, None), (2, 1), (4, 1), (9, 2)])
def test_a_quarter_of_the_examples_is_held_out(examples: int, kept: int | None) -> None:
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    fit, held = Met(model, normal(examples, 7, 3), itself).joints["layers.0"]
    assert fit is not None
    assert fit.count == 7 * (examples - (kept or 0))
    assert (None if held is None else held.count) == (None if kept is None else 7 * kept)


def test_a_shared_layer_is_met_once_and_replaced_everywhere() -> None:
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    x = normal(10, 4)
    met = Met(nnx.Sequential(layer, nnx.relu, layer), x, truncated)
    ((path, op),) = met.ops.items()
    small = met.adapter.refilled(sequential(layer), path, truncated(op)[0])
    y, y_hat = layer(x), small(x)
    z, z_hat = layer(nnx.relu(y)), small(nnx.relu(y_hat))
    apart = jnp.square(y - y_hat).sum() + jnp.square(z - z_hat).sum()
    size = jnp.square(y).sum() + jnp.square(z).sum()
    assert list(met.joints) == [path]
    assert met.errors[path] == pytest.approx(float(jnp.sqrt(apart / size)), rel=1e-4)


def test_batches_of_other_shapes_and_structures_meet_layers_too() -> None:
    class Branching(nnx.Module):
        def __init__(self) -> None:
            self.first, self.last = (nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(2))

        def __call__(self, x: Any) -> Any:
            x = self.first(x) if len(x) > 3 else jnp.abs(x) * 2
            return self.last(x)

    met = Met(Branching(), [normal(2, 4), normal(5, 4), normal(6, 4)], truncated)
    assert list(met.joints) == ["last", "first"]
    fit, held = met.joints["last"]
    assert fit is not None
    assert fit.count + (0 if held is None else held.count) == 2
    assert set(met.errors) == {"first", "last"}


class Step(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, Any]:
        x = nn.tanh(nn.Dense(4)(x))
        return x, x.sum()


class Scanned(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scanned = nn.scan(
            nn.remat(Step),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        x, sums = scanned(name="steps")(nn.Dense(4, name="first")(x), None)
        return nn.Dense(3, name="last")(x) + sums.sum()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_layers_of_a_scan_are_met_turn_by_turn(axis: int) -> None:
    batches = [normal(8, 4), normal(5, 4)]
    x = np.concatenate(batches)
    model = bound(Scanned(axis), x)
    met = Met(model, batches, truncated)
    assert list(met.joints) == ["first", "last"]
    (path, parts) = met.parts.popitem()
    assert (path, met.parts) == ("steps.Dense_0", {})
    assert met.joints["last"][0] is not None
    assert Met(model, batches, itself).errors == dict.fromkeys(met.errors, 0.0)
    assert set(met.errors) == {"first", path, "last"}
    first, stack, _ = met.ops.values()
    held_out = np.arange(13) % 4 == 3
    a, b = (x @ op.weight.T + op.bias for op in (first, truncated(first)[0]))
    apart = size = 0.0
    for place, (groups, *joints) in enumerate(parts):
        assert groups == (place,)
        op = of_groups(stack, groups, 3)
        y, y_hat = (one @ w.weight.T + w.bias for one, w in ((a, op), (b, truncated(op)[0])))
        for joint, rows in zip(joints, (~held_out, held_out), strict=True):
            assert joint is not None
            assert joint.count == rows.sum()
            np.testing.assert_allclose(joint.xx[0], b[rows].T @ b[rows], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(joint.yx[0], y[rows].T @ b[rows], rtol=1e-4, atol=1e-4)
        apart, size = apart + np.square(y - y_hat).sum(), size + np.square(y).sum()
        a, b = np.tanh(y), np.tanh(y_hat)
    assert met.errors[path] == pytest.approx(np.sqrt(apart / size), rel=1e-4)


class Looping(nnx.Module):
    def __init__(self) -> None:
        names = ("router", "turned", "big", "small", "last")
        for place, name in enumerate(names):
            setattr(self, name, nnx.Linear(4, 4, rngs=nnx.Rngs(place)))

    def __call__(self, x: Any) -> Any:
        scores = self.router(x).sum()
        x = lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, nnx.tanh(self.turned(c[1]))), (0, x)
        )[1]
        x = lax.cond(scores > 0, lambda x: self.big(x), lambda x: self.small(x) * 2, x)
        return self.last(x)


def test_loops_of_unknown_length_and_branches() -> None:
    model = Looping()
    batches = [normal(6, 4) + shift for shift in (0, 2, -2)]
    met = Met(model, batches, itself)
    assert list(met.joints)[:2] == ["router", "turned"]
    assert list(met.joints)[4] == "last"
    assert set(met.errors) == {"router", "turned", "big", "small", "last"}
    assert max(met.errors.values()) == 0.0
    assert met.joints["last"][0] is not None
    met = Met(model, batches, lambda op: (replace(op, weight=-op.weight),))
    assert met.errors["router"] == pytest.approx(2.0, rel=0.2)
    assert np.isfinite(list(met.errors.values())).all()


def test_chains_and_tables() -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs))

    def chain(op: Op) -> Chain:
        if isinstance(op, Embedding):
            return (op, Linear(np.eye(4, dtype=np.float32)))
        return (Linear(np.eye(4, dtype=np.float32)), Linear(op.weight, op.bias))

    met = Met(model, np.random.default_rng(0).integers(0, 7, (5, 3)), chain)
    table, matrix = met.joints.values()
    assert table == (None, None)
    assert matrix[0] is not None
    assert max(met.errors.values()) < 1e-6


def test_a_chain_that_cannot_be_built_leaves_the_layer() -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs))

    def chain(op: Op) -> Chain:
        if len(op.weight) == 4:
            return (Linear(op.weight[:, :2], op.bias, groups=2), Linear(np.eye(4)))
        return (op,)

    assert Met(model, normal(5, 4), chain).errors == {"layers.1": 0.0}


def test_both_runs_draw_the_same_numbers() -> None:
    class Drawing(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))
            return nn.Dense(2)(x + jax.random.normal(self.make_rng("dropout"), x.shape))

    model = bound_with_dropout(Drawing(), normal(5, 4))
    assert Met(model, normal(5, 4), itself).errors == {"Dense_0": 0.0, "Dense_1": 0.0}


def bound_with_dropout(module: nn.Module, x: Any) -> nn.Module:
    key = jax.random.key(0)
    return module.bind(module.init({"params": key, "dropout": key}, x), rngs={"dropout": key})


def test_a_batch_that_fails_is_named() -> None:
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(RankfoldError, match="batch 1 with TypeError"):
        Met(model, [normal(4, 4), normal(4, 3)], itself)


def test_an_error_of_the_visitor_comes_through() -> None:
    def chain(op: Op) -> Chain:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        Met(residual("nnx"), normal(4, 9, 8, 3), chain)


def nnx_layer(name: str) -> Any:
    rngs = nnx.Rngs(0)
    keys = jax.random.split(jax.random.key(0), 3)
    made: dict[str, Callable[[], Any]] = {
        "linear": lambda: nnx.Linear(4, 3, kernel_metadata={"note": "mine"}, rngs=rngs),
        "bfloat16": lambda: nnx.Linear(4, 3, use_bias=False, param_dtype=jnp.bfloat16, rngs=rngs),
        "general": lambda: nnx.LinearGeneral((2, 3), (5, 4), axis=(-2, -1), rngs=rngs),
        "einsum": lambda: nnx.Einsum("bhse,hed->bshd", (2, 5, 7), (2, 7), rngs=rngs),
        "conv": lambda: nnx.Conv(4, 6, (3, 2), feature_group_count=2, rngs=rngs),
        "transposed": lambda: nnx.ConvTranspose(4, 6, (3, 2), rngs=rngs),
        "flipped": lambda: nnx.ConvTranspose(4, 6, (3, 2), transpose_kernel=True, rngs=rngs),
        "embed": lambda: nnx.Embed(5, 3, rngs=rngs),
        "stack": lambda: nnx.vmap(lambda key: nnx.Linear(5, 4, rngs=nnx.Rngs(key)), out_axes=-1)(
            keys
        ),
    }
    return made[name]()


@pytest.mark.parametrize(
    "name",
    ["linear", "bfloat16", "general", "einsum", "conv", "transposed", "flipped", "embed", "stack"],
)
def test_refilled_nnx_layers(name: str) -> None:
    layer = nnx_layer(name)
    adapter, model = NNXAdapter(), nnx.Sequential(layer)
    before = jax.tree.map(np.asarray, nnx.state(layer))
    op = adapter.read(model, "layers.0")
    found = adapter.refilled(model, "layers.0", doubled(op))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(layer))
    same(NNXAdapter().read(nnx.Sequential(found), "layers.0"), doubled(op))
    assert type(found) is type(layer)
    kept, now = (
        (v.get_metadata(), v.get_raw_value().dtype)
        for v in (layer_array(layer), layer_array(found))
    )
    assert kept == now
    small = adapter.replace(model, {"layers.0": found}, inplace=False)
    assert small.layers[0] is found


def layer_array(layer: Any) -> Any:
    return layer.embedding if isinstance(layer, nnx.Embed) else layer.kernel


def doubled(op: Op) -> Op:
    made = replace(op, weight=op.weight * 2)
    if isinstance(made, Embedding) or made.bias is None:
        return made
    bias = made.bias + np.arange(len(made.bias), dtype=made.bias.dtype)
    return replace(made, bias=bias)


def same(found: Op, op: Op) -> None:
    np.testing.assert_array_equal(found.weight, op.weight)
    if op.bias is not None:
        assert found.bias is not None
        np.testing.assert_array_equal(found.bias, op.bias)


def test_refilled_linen_layers_keep_the_class_of_the_model() -> None:
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            x = nn.Dense(6, kernel_init=init)(x)
            return nn.DenseGeneral((2, 3), axis=(-2, -1))(x)

    x = normal(2, 4, 5)
    model = bound(Boxed(), x)
    adapter = adapter_for(model, x)
    ops = {path: adapter.read(model, path) for path in adapter.layers(model)}
    made = {path: adapter.refilled(model, path, doubled(op)) for path, op in ops.items()}
    assert all(isinstance(layer, Refilled) for layer in made.values())
    small = adapter.replace(model, made, inplace=False)
    assert type(small) is Boxed
    again = adapter_for(small, x)
    for path, op in ops.items():
        same(again.read(small, path), doubled(op))
        same(adapter.read(model, path), op)
    shapes = [jax.tree.structure(m.variables) for m in (model, small)]
    assert shapes[0] == shapes[1]
    chain = (Linear(np.eye(4, 5)), Linear(np.ones((6, 4)), np.ones(6)))
    mixed = {**made, "Dense_0": adapter.build(model, "Dense_0", chain)}
    small = adapter.replace(model, mixed, inplace=False)
    np.testing.assert_array_equal(
        small.variables["params"]["DenseGeneral_0"]["kernel"],
        made["DenseGeneral_0"].params["kernel"],
    )
    assert small(x).shape == (2, 2, 3)


def test_refilled_refuses_what_does_not_fit() -> None:
    adapter, model = NNXAdapter(), nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(Refused, match="do not fit into its parameters"):
        adapter.refilled(model, "layers.0", Linear(np.ones((3, 4))))
    with pytest.raises(Refused, match=r"\(3, 5\)"):
        adapter.refilled(model, "layers.0", Linear(np.ones((3, 5)), np.ones(3)))


def test_distance_of_outputs_and_predictions() -> None:
    x = [normal(6, 4), normal(3, 4)]
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    small = nnx.clone(model)
    small.kernel[...] += 0.1
    a, b = (np.asarray(m(np.concatenate(x)), np.float64) for m in (model, small))
    adapter = NNXAdapter()

    def apart(loss: Any, other: Any = small) -> tuple[float, float]:
        return adapter.divergence(model, other, Calibration.of(x, None, loss))

    assert apart("outputs", model) == apart("cross_entropy", model) == (0.0, 0.0)
    expected = np.square(a - b).sum() / np.square(a).sum()
    assert apart("outputs") == (0.0, pytest.approx(expected, rel=1e-5))
    p, q = (v - np.log(np.exp(v).sum(1, keepdims=True)) for v in (a, b))
    expected = (np.exp(p) * (p - q)).sum(1).mean()
    assert apart("cross_entropy") == (0.0, pytest.approx(expected, rel=1e-4))
    first, second = apart(lambda outputs, batch: jnp.square(outputs).mean())
    for value, outputs in ((first, a), (second, b)):
        parts = np.mean([np.square(outputs[:6]).mean(), np.square(outputs[6:]).mean()])
        assert value == pytest.approx(parts, rel=1e-5)
    with pytest.raises(RankfoldError, match="batch 0 with TypeError"):
        adapter.divergence(model, small, Calibration.of([normal(6, 3)], None, None))


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_layers_and_models_are_measured(framework: str) -> None:
    x = normal(64, 8, 8, 3)
    model = residual(framework)
    adapter = adapter_for(model, x)
    op = adapter.read(model, "head")
    chains: list[Chain] = [
        (Linear(blank(2, 6)), Linear(blank(5, 2), blank(5))),
        (Linear(blank(2, 1), groups=2),),
    ]
    times = adapter.seconds(model, "head", chains, ((64,), (2, 3)))
    assert len(times) == 3
    assert times[2] == np.inf
    assert 0 < times[0] < 1
    assert 0 < times[1] < 1
    conv = adapter.seconds(model, "conv", [(adapter.read(model, "conv"),)], ((64, 8, 8),))
    assert all(0 < t < 1 for t in conv)
    slow, fast = adapter.model_seconds([model, model], x)
    assert slow > 0
    assert fast > 0
    assert op.groups == 1


def test_biases_of_replacements_stay_out_of_the_inputs_without_a_refit() -> None:
    class Two(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(20, 24, rngs=rngs)
            self.b = nnx.Linear(24, 24, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.b(self.a(x))

    model = Two(nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 1.0, (64, 20)), jnp.float32)
    options: dict[str, Any] = {"include": "*", "calibration": [x], "refit": False}
    small = rf.compress(model, rf.Ratio(0.25), inputs=x[:1], **options)
    inside = model.a(x)
    whole = model.b(inside)
    apart = np.linalg.norm(whole - small.model.b(inside)) / np.linalg.norm(whole)
    assert small.plan["b"].measured == pytest.approx(apart, rel=1e-4)
