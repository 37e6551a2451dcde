"""Flax models are compressed with data: accuracy, budgets of every kind, and what plans say."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

import rankfold as rf
from rankfold.errors import RankfoldError

WIDTHS = ((24, 24, 1), (24, 48, 2), (48, 48, 1))
EPOCHS, BATCH = 8, 50


class BlockNNX(nnx.Module):
    def __init__(self, into: int, out: int, stride: int, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"use_bias": False, "rngs": rngs}
        self.a = nnx.Conv(into, out, (3, 3), strides=stride, **options)
        self.na = nnx.BatchNorm(out, momentum=0.9, rngs=rngs)
        self.b = nnx.Conv(out, out, (3, 3), **options)
        self.nb = nnx.BatchNorm(out, momentum=0.9, rngs=rngs)
        self.skip = nnx.Conv(into, out, (1, 1), strides=stride, **options) if into != out else None

    def __call__(self, x: Any) -> Any:
        y = self.nb(self.b(nnx.relu(self.na(self.a(x)))))
        return nnx.relu(y + (x if self.skip is None else self.skip(x)))


class NetNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(1, 24, (3, 3), rngs=rngs)
        self.blocks = nnx.List(BlockNNX(*widths, rngs) for widths in WIDTHS)
        self.head = nnx.Linear(48, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class BlockLinen(nn.Module):
    out: int
    stride: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        def norm(name: str) -> Any:
            return nn.BatchNorm(use_running_average=True, name=name)

        def conv(size: int, stride: int, name: str) -> Any:
            return nn.Conv(self.out, (size, size), stride, use_bias=False, name=name)

        y = norm("nb")(conv(3, 1, "b")(nn.relu(norm("na")(conv(3, self.stride, "a")(x)))))
        return nn.relu(y + (conv(1, self.stride, "skip")(x) if x.shape[-1] != self.out else x))


class NetLinen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(24, (3, 3), name="stem")(x))
        for place, (_, out, stride) in enumerate(WIDTHS):
            x = BlockLinen(out, stride, name=f"block{place}")(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = (images[order].reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    return x, labels[order]


TRAINED = 1200


@cache
def trained() -> NetNNX:
    x, y = digits()
    model = NetNNX(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)

    model.train()
    structure, state = nnx.split((model, optimizer))

    # The one thing here that runs many times, so that optimising it pays.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def step(state: Any, x: Any, y: Any) -> Any:
        model, optimizer = nnx.merge(structure, state)

        def loss(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))
        return nnx.state((model, optimizer))

    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(TRAINED)
        for start in range(0, TRAINED, BATCH):
            batch = order[start : start + BATCH]
            state = step(state, x[batch], y[batch])
    nnx.update((model, optimizer), state)
    model.eval()
    return model


def in_linen(model: NetNNX) -> nn.Module:
    """The same weights."""
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        names = [str(name) for name in path]
        if names[0] == "blocks":
            names = [f"block{names[1]}", *names[2:]]
        tree: Any = stats if isinstance(variable, nnx.BatchStat) else params
        for name in names[:-1]:
            tree = tree.setdefault(name, {})
        tree[names[-1]] = variable.get_raw_value()
    return NetLinen().bind({"params": params, "batch_stats": stats})


def accuracy(model: Any) -> float:
    x, y = digits()
    if isinstance(model, nnx.Module):
        outputs = nnx.jit(lambda model, x: model(x))(model, x[TRAINED:])
    else:
        module, variables = model.unbind()
        outputs = jax.jit(module.apply)(variables, x[TRAINED:])
    return float((np.asarray(outputs).argmax(1) == y[TRAINED:]).mean())


def calibration() -> list[jax.Array]:
    x, _ = digits()
    return [jnp.asarray(x[start : start + 128]) for start in range(0, 512, 128)]


def test_a_budget_with_data_keeps_the_accuracy_that_weights_alone_lose() -> None:
    options = {"methods": ("svd", "channel_svd")}
    small = kept_and_lost(trained(), rf.Budget(macs=0.3), 0.05, **options)
    assert small.plan.macs is not None
    assert small.plan.macs[1] <= 0.3 * small.plan.macs[0]


def test_a_refit_at_a_uniform_ratio_keeps_it_too() -> None:
    options = {"methods": ("svd", "tucker2"), "exclude": "head"}
    small = kept_and_lost(in_linen(trained()), rf.Ratio(0.3), 0.06, **options)
    assert small.plan.macs is not None
    assert small.plan.macs[1] <= 0.2 * small.plan.macs[0]


def kept_and_lost(model: Any, policy: Any, allowed: float, **options: Any) -> rf.Compressed:
    """Compresses with data, without losing more accuracy than allowed; without it much is lost."""
    batches = calibration()
    options["inputs"] = batches[0][:1]
    before = accuracy(model)
    assert before > 0.95
    plain = rf.compress(model, policy, **options)
    small = rf.compress(model, policy, calibration=batches, loss="cross_entropy", **options)
    assert accuracy(small.model) > before - allowed
    assert accuracy(plain.model) < before - 0.3
    assert accuracy(model) == before
    assert small.plan.loss is not None
    assert small.plan.loss[1] < 0.5
    replaced = [layer for layer in small.plan.layers if layer.method is not None]
    assert len(replaced) >= 4
    assert any(layer.refit for layer in replaced)
    for layer in replaced:
        assert layer.measured == pytest.approx(layer.predicted, rel=0.2)
    return small


def small_model(framework: str) -> tuple[Any, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
    if framework == "linen":
        module = nn.Sequential([nn.Dense(24), nn.relu, nn.Dense(20)])
        return module.bind(module.init(jax.random.key(0), x)), x
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(12, 24, rngs=rngs), nnx.relu, nnx.Linear(24, 20, rngs=rngs)), x


@pytest.mark.parametrize("framework", ["nnx"])
def test_moments_are_gathered_once_and_used_again(framework: str) -> None:
    model, x = small_model(framework)
    moments = rf.gather(model, x, inputs=x)
    assert {layer.samples for layer in moments.values()} == {16}
    plans = [
        rf.compress(model, rf.Budget(macs=0.5), inputs=x, calibration=x, moments=known).plan
        for known in (moments, None)
    ]
    assert plans[0].layers == plans[1].layers
    assert plans[0].macs is not None
    assert plans[0].macs[1] <= 0.5 * plans[0].macs[0]
    again = rf.apply(model, plans[0], inputs=x)
    assert [m.method for m in again.plan.layers] == [m.method for m in plans[0].layers]


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_layers_that_stay_are_refitted(framework: str) -> None:
    model, x = small_model(framework)
    options: dict[str, Any] = {"inputs": x, "calibration": [x, -x, 2 * x]}
    paths = [layer.path for layer in rf.plan(model, rf.Ranks(1), inputs=x).layers]
    policy = {paths[0]: rf.Ranks(3), paths[1]: rf.Energy(1.0)}
    small = rf.compress(model, rf.Energy(1.0), overrides=policy, **options)
    last = small.plan[paths[1]]
    assert last.method is None
    assert small.plan[paths[0]].method is not None
    if last.refit:
        assert last.measured is not None
    apart = [
        float(np.linalg.norm(np.asarray(m(x)) - np.asarray(model(x))))
        for m in (
            small.model,
            rf.compress(model, rf.Energy(1.0), overrides=policy, refit=False, **options).model,
        )
    ]
    assert apart[0] <= apart[1] * 1.0001


@pytest.mark.parametrize("framework", ["linen"])
def test_a_score_may_drop_so_far(framework: str) -> None:
    model, x = small_model(framework)
    wanted = np.asarray(model(x))

    def score(candidate: Any) -> float:
        apart = np.linalg.norm(np.asarray(candidate(x)) - wanted)
        return float(1 - apart / np.linalg.norm(wanted))

    policy = rf.Budget(drop=0.3, evaluate=score)
    small = rf.compress(model, policy, inputs=x, calibration=x)
    assert score(small.model) >= 0.7
    assert small.plan.trials


def test_a_budget_of_time_is_met_by_measured_layers() -> None:
    wide = nnx.Sequential(nnx.Linear(384, 256, rngs=nnx.Rngs(0)))
    x = np.ones((512, 384), np.float32)
    plan = rf.compress(wide, rf.Budget(latency=0.9), inputs=x, methods="svd").plan
    assert plan.predicted_latency is not None
    assert plan.latency is not None


def test_a_callable_loss_reads_the_labels_of_a_batch() -> None:
    model, x = small_model("nnx")
    labels = np.arange(16) % 20

    def loss(outputs: Any, batch: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()

    batches = [(x[:8], labels[:8]), (x[8:], labels[8:])]
    small = rf.compress(model, rf.Budget(macs=0.6), inputs=x, calibration=batches, loss=loss)
    assert small.plan.loss is not None
    held = [(a[3::4], b[3::4]) for a, b in batches]
    expected = np.mean([float(loss(model(a), (a, b))) for a, b in held])
    assert small.plan.loss[0] == pytest.approx(expected, rel=1e-4)


def test_flags_come_with_the_inputs() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
            return nn.Dense(12)(nn.Dropout(0.5, deterministic=not train)(x))

    x = np.random.default_rng(0).standard_normal((24, 10)).astype(np.float32)
    model = Net().bind(Net().init(jax.random.key(0), x, train=False))
    inputs = {"x": x, "train": False}
    small = rf.compress(model, rf.Budget(macs=0.6), inputs=inputs, calibration=[inputs])
    assert small.plan.macs is not None
    assert small.plan.macs[1] <= 0.6 * small.plan.macs[0]
    assert small.model(**inputs).shape == (24, 12)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_bad_calibration_is_named(framework: str) -> None:
    model, x = small_model(framework)

    def compress(batches: Any, loss: Any = None) -> None:
        rf.compress(model, rf.Budget(macs=0.5), inputs=x, calibration=batches, loss=loss)

    with pytest.raises(RankfoldError, match="no batch"):
        compress([])
    with pytest.raises(RankfoldError, match="batch 0"):
        compress([x[:, :5]])
    with pytest.raises(RankfoldError, match="NaN"):
        compress([x * np.nan])
    with pytest.raises(RankfoldError, match=r"shape \(20,\)"):
        compress([x], lambda outputs, batch: outputs.sum(0))


def test_arguments_before_the_examples_do_not_count_as_examples() -> None:
    class Timed(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(20, 24, rngs=rngs)
            self.b = nnx.Linear(24, 10, rngs=rngs)

        def __call__(self, t: jax.Array, x: jax.Array) -> jax.Array:
            return self.b(jnp.tanh(self.a(x)) * t)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 20)), jnp.float32)
    moments = rf.gather(Timed(nnx.Rngs(0)), [{"t": jnp.float32(0.5), "x": x}])
    assert moments["a"].samples == 64


def test_nothing_is_refitted_before_the_first_replaced_layer() -> None:
    class Half(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(20, 24, dtype=jnp.bfloat16, rngs=rngs)
            self.b = nnx.Linear(24, 10, dtype=jnp.bfloat16, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.b(jnp.tanh(self.a(x)))

    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 20)), jnp.float32)
    small = rf.compress(Half(nnx.Rngs(0)), rf.Budget(macs=1.0), inputs=x[:1], calibration=[x])
    assert not any(layer.refit for layer in small.plan.layers)
    assert small.plan.loss == (0.0, 0.0)


def test_products_with_a_table_count() -> None:
    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Embed(50, 16, rngs=rngs)
            self.fc = nnx.Linear(16, 16, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.embed.attend(self.fc(self.embed(x)))

    x = jnp.zeros((2, 7), jnp.int32)
    small = rf.compress(Tied(nnx.Rngs(0)), rf.Ranks({"embed": 4}), inputs=x)
    assert small.plan["embed"].macs == (14 * 50 * 16, 14 * (50 * 4 + 4 * 16) + 14 * 4 * 16)
