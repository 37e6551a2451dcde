"""An interrupted call leaves a model as it was; calls from several threads do not mix."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from tests.interrupting import interrupted, interrupted_after
from tests.torch.conftest import _one_thread, _seeded, state  # noqa: F401 - fixtures
from torch import nn

import rankfold as rf

TORCH = (
    "rankfold_torch/model_state.py",
    "rankfold_torch/temporary_changes.py",
    "rankfold_torch/torch_internals.py",
    "paired_run/attribute_writes.py",
    "state/restoration.py",
)
THREADS = ("paired_run/coroutine_threads.py", "paired_run/driver.py", "plugins/model_lock.py")
FLAX = (
    "nnx/tracing.py",
    "linen/tracing.py",
    "linen/interception.py",
    "rankfold_jax/versions.py",
    "state/restoration.py",
)


def torch_model() -> nn.Module:
    layers = nn.Linear(7, 11), nn.BatchNorm1d(11), nn.ReLU(), nn.Linear(11, 5)
    return nn.Sequential(*layers).train()


def torch_state(model: nn.Module) -> Any:
    patched = nn.Module.__getattr__, nn.Module.__setattr__
    return state(model), patched, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


class Network(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(5, name="last")(linen.relu(linen.Dense(11, name="first")(x)))


def linen_model() -> linen.Module:
    return Network().bind(Network().init(jax.random.key(0), jnp.zeros((1, 7))))


def nnx_model() -> nnx.Module:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(7, 11, rngs=rngs), nnx.relu, nnx.Linear(11, 5, rngs=rngs))


def flax_state(model: Any) -> Any:
    is_nnx = isinstance(model, nnx.Module)
    leaves = jax.tree.leaves(nnx.state(model) if is_nnx else model.variables)
    kinds = [type(m) for _, m in nnx.iter_graph(model)] if is_nnx else type(model)
    outputs = model(jnp.ones((2, 7)))  # with nothing of a trace left in its classes
    return kinds, [np.asarray(array).tobytes() for array in (*leaves, outputs)]


@dataclass(frozen=True)
class Framework:
    make: Callable[[], Any]
    draw: Callable[..., Any]
    state: Callable[[Any], Any]

    def call(self, verb: str, model: Any) -> Callable[[], Any]:
        x = self.draw(16, 7)
        calls: dict[str, Callable[[], Any]] = {
            "plan": lambda: rf.plan(model, rf.Ratio(0.5), inputs=x[:2], include="*"),
            "gather": lambda: rf.gather(model, [x], inputs=x[:2]),
            "compress": lambda: rf.compress(model, rf.Ratio(0.5), calibration=[x], inputs=x[:2]),
        }
        return calls[verb]


FRAMEWORKS = {
    "torch": Framework(torch_model, torch.randn, torch_state),
    "nnx": Framework(nnx_model, lambda *shape: jnp.ones(shape), flax_state),
    "linen": Framework(linen_model, lambda *shape: jnp.ones(shape), flax_state),
}
CALLS = [
    *(
        ("torch", verb, files)
        for verb in ("plan", "gather", "compress")
        for files in (TORCH, THREADS)
    ),
    ("nnx", "plan", FLAX),
    ("linen", "plan", FLAX),
]


def some_lines(total: int, count: int) -> list[int]:
    return [int(line) for line in np.unique(np.linspace(1, total, count).astype(int))]


@pytest.mark.parametrize(
    ("name", "verb", "files"),
    CALLS,
    ids=[f"{name}-{verb}-{files[0]}" for name, verb, files in CALLS],
)
def test_an_interrupt_at_any_line_leaves_a_model_as_it_was(
    name: str, verb: str, files: tuple[str, ...]
) -> None:
    framework = FRAMEWORKS[name]
    model = framework.make()
    work = framework.call(verb, model)
    total = interrupted(work, files)
    before = framework.state(model)
    for line in some_lines(total, 12 if name == "torch" else 6):
        interrupted(work, files, line)
        assert framework.state(model) == before, line
    assert len(framework.call("plan", model)().replaced) == 2


@pytest.mark.parametrize("again", [1, 2, 5])
def test_a_second_interrupt_while_the_first_is_dealt_with_changes_nothing(again: int) -> None:
    model = torch_model()
    work = FRAMEWORKS["torch"].call("gather", model)
    total = interrupted(work, TORCH)
    before = torch_state(model)
    for line in some_lines(total, 8):
        interrupted(work, TORCH, line, line + again)
        assert torch_state(model) == before, line


# an interrupt may come as the garbage collector closes a generator, where Python only reports it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("verb", ["plan", "gather", "compress"])
def test_an_interrupt_as_a_stack_of_contexts_is_left_leaves_pytorch_working(verb: str) -> None:
    model = torch_model()
    work = FRAMEWORKS["torch"].call(verb, model)
    before = torch_state(model)
    total = interrupted_as_it_leaves(work, -1)
    assert total > 5
    for count in some_lines(total, 20):
        assert interrupted_as_it_leaves(work, count) == count
        assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0)), count
        assert torch_state(model) == before, count


def interrupted_as_it_leaves(work: Callable[[], Any], which: int) -> int:
    """Interrupts a call as it leaves its nth context; returns how many it had left by then."""
    left = 0

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal left
        code = frame.f_code
        leaves = event == "call" and code.co_name == "__exit__" and "contextlib" in code.co_filename
        if leaves and left != which and "rankfold" in frame.f_back.f_code.co_filename:
            left += 1
            if left == which:
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return left


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_an_interrupt_while_a_compressed_model_runs_leaves_nothing_behind(name: str) -> None:
    model, x = FRAMEWORKS[name].make(), jnp.ones((2, 7))
    small = rf.compress(model, rf.Ratio(0.5), inputs=x).model
    expected = model(x), small(x)
    total = interrupted(lambda: small(x), FLAX)
    for line in some_lines(total, 8):
        interrupted(lambda: small(x), FLAX, line)
        assert np.array_equal(model(x), expected[0]), line
        assert np.array_equal(small(x), expected[1]), line


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3)
        return self.layer(x)


@pytest.mark.parametrize("verb", ["plan", "gather"])
def test_what_a_signal_handler_raises_while_the_model_runs_is_no_fault_of_the_model(
    verb: str,
) -> None:
    def ring(*_: Any) -> None:
        raise TimeoutError("too long")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeoutError, match="too long"):
            FRAMEWORKS["torch"].call(verb, Slow())()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_calls_from_several_threads_give_what_each_gives_alone(name: str) -> None:
    framework = FRAMEWORKS[name]
    x = framework.draw(2, 7)
    models = []
    for _ in range(3):
        torch.manual_seed(0)  # which the others do not draw from
        models.append(framework.make())

    def work(model: Any) -> rf.Plan:
        return rf.compress(model, rf.Budget(macs=0.7), inputs=x).plan

    alone = work(models[0])
    with ThreadPoolExecutor(6) as pool:
        assert all(plan == alone for plan in pool.map(work, models * 2))


@pytest.mark.slow
# an interrupt may come in a callback of the garbage collector, where Python only reports it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("name", "verb", "times"),
    [
        *(("torch", verb, 200) for verb in ("plan", "gather", "compress")),
        ("nnx", "compress", 60),
        ("linen", "compress", 60),
    ],
)
def test_interrupts_at_random_times_leave_a_model_as_it_was(
    name: str, verb: str, times: int
) -> None:
    framework, rng = FRAMEWORKS[name], np.random.default_rng(0)
    model = framework.make()
    work = framework.call(verb, model)
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    before = framework.state(model)
    for _ in range(times):
        interrupted_after(work, float(rng.uniform(1e-4, took)))
        assert framework.state(model) == before
