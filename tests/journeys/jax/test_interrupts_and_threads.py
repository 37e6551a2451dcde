"""Flax models are as they were after an interrupt, and calls from several threads do not mix."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from tests.interrupting import interrupted, interrupted_after

import rankfold as rf

FILES = (
    "nnx/tracing.py",
    "linen/tracing.py",
    "linen/interception.py",
    "rankfold_jax/versions.py",
    "state/restoration.py",
)


class Network(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(5, name="last")(linen.relu(linen.Dense(11, name="first")(x)))


def nnx_model() -> nnx.Module:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(7, 11, rngs=rngs), nnx.relu, nnx.Linear(11, 5, rngs=rngs))


def linen_model() -> linen.Module:
    return Network().bind(Network().init(jax.random.key(0), jnp.zeros((1, 7))))


MODELS = pytest.mark.parametrize("make", [nnx_model, linen_model], ids=["nnx", "linen"])


def state(model: Any) -> Any:
    if isinstance(model, nnx.Module):
        leaves = jax.tree.leaves(nnx.state(model))
        return [type(m) for _, m in nnx.iter_graph(model)], [
            np.asarray(x).tobytes() for x in leaves
        ]
    return type(model), [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model.variables)]


@MODELS
def test_an_interrupt_while_a_model_is_traced_leaves_nothing_behind(
    make: Callable[[], Any],
) -> None:
    model, x = make(), jnp.ones((2, 7))

    def work() -> rf.Plan:
        return rf.plan(model, rf.Ratio(0.5), inputs=x, include="*")

    before, outputs = state(model), model(x)
    total = interrupted(work, FILES)
    for line in np.unique(np.linspace(1, total, 6).astype(int)):
        interrupted(work, FILES, int(line))
        assert state(model) == before, line
        assert np.array_equal(model(x), outputs), line
    assert len(work().replaced) == 2


@MODELS
def test_an_interrupt_while_a_compressed_model_runs_leaves_nothing_behind(
    make: Callable[[], Any],
) -> None:
    model, x = make(), jnp.ones((2, 7))
    small = rf.compress(model, rf.Ratio(0.5), inputs=x).model
    expected = model(x), small(x)
    total = interrupted(lambda: small(x), FILES)
    for line in np.unique(np.linspace(1, total, 8).astype(int)):
        interrupted(lambda: small(x), FILES, int(line))
        assert np.array_equal(model(x), expected[0]), line
        assert np.array_equal(small(x), expected[1]), line


@MODELS
def test_calls_from_several_threads_give_what_each_gives_alone(make: Callable[[], Any]) -> None:
    models = [make(), make(), make()]
    x = jnp.ones((2, 7))

    def work(model: Any) -> rf.Plan:
        return rf.compress(model, rf.Budget(macs=0.7), inputs=x).plan

    alone = work(models[0])
    with ThreadPoolExecutor(6) as pool:
        assert all(plan == alone for plan in pool.map(work, models * 2))


@pytest.mark.slow
# an interrupt may come in a callback of the garbage collector, where Python only reports it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@MODELS
def test_interrupts_at_random_times_leave_a_model_as_it_was(make: Callable[[], Any]) -> None:
    model, x, rng = make(), jnp.ones((16, 7)), np.random.default_rng(0)
    before = state(model)
    for _ in range(60):
        work = lambda: rf.compress(model, rf.Ratio(0.5), calibration=[x], inputs=x)  # noqa: E731
        interrupted_after(work, float(rng.uniform(1e-3, 1.0)))
        assert state(model) == before
    assert len(work().plan.replaced) == 2
