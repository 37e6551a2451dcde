"""A model is as it was wherever a call is interrupted, and the next call goes on as ever."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.interrupting import interrupted, interrupted_after
from tests.torch.conftest import state
from torch import nn

import rankfold as rf
from rankfold.state.restoration import Restored, settled

FILES = (
    "rankfold_torch/temporary_changes.py",
    "rankfold_torch/torch_internals.py",
    "paired_run/attribute_writes.py",
    "state/restoration.py",
)
THREADS = ("paired_run/coroutine_threads.py", "paired_run/driver.py", "plugins/model_lock.py")


class Counting(nn.Module):
    """Keeps a number on itself, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


def network() -> nn.Module:
    layers = nn.Linear(7, 11), nn.BatchNorm1d(11), nn.ReLU(), nn.Linear(11, 5)
    return nn.Sequential(*layers).train()


def patches() -> tuple[object, ...]:
    return (
        nn.Module.__getattr__,
        nn.Module.__setattr__,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


def calls(model: nn.Module) -> dict[str, Callable[[], object]]:
    x = torch.randn(16, 7)
    return {
        "plan": lambda: rf.plan(model, rf.Ratio(0.5), inputs=x[:2]),
        "gather": lambda: rf.gather(model, [x]),
        "compress": lambda: rf.compress(model, rf.Ratio(0.5), calibration=[x]),
    }


@pytest.mark.parametrize("files", [FILES, THREADS], ids=["changes", "turns"])
@pytest.mark.parametrize("verb", ["plan", "gather", "compress"])
def test_an_interrupt_at_any_line_leaves_a_model_as_it_was(
    verb: str, files: tuple[str, ...]
) -> None:
    model = network()
    work = calls(model)[verb]
    total = interrupted(work, files)
    before, around = state(model), patches()
    for line in np.unique(np.linspace(1, total, 12).astype(int)):
        interrupted(work, files, int(line))
        assert state(model) == before, line
        assert patches() == around, line
    work()


@pytest.mark.parametrize("again", [1, 2, 5])
def test_a_second_interrupt_while_the_first_is_dealt_with_changes_nothing(again: int) -> None:
    model = network()
    work = calls(model)["gather"]
    total = interrupted(work, FILES)
    before = state(model)
    for line in np.unique(np.linspace(1, total, 8).astype(int)):
        interrupted(work, FILES, int(line), int(line) + again)
        assert state(model) == before, line


@pytest.mark.slow
# an interrupt may come in a callback of the garbage collector, where Python only reports it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("verb", ["plan", "gather", "compress"])
def test_interrupts_at_random_times_leave_a_model_as_it_was(verb: str) -> None:
    model, rng = network(), np.random.default_rng(0)
    work = calls(model)[verb]
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    before, around = state(model), patches()
    for _ in range(200):
        interrupted_after(work, float(rng.uniform(1e-4, took)))
        assert state(model) == before
        assert patches() == around


def test_what_cannot_be_undone_keeps_nothing_else_from_it() -> None:
    undone: list[str] = []

    def fails() -> None:
        raise ValueError("for good")

    @settled
    def call() -> None:
        with Restored(lambda: undone.append("first")), Restored(fails):
            pass

    with pytest.raises(ValueError, match="for good"):
        call()
    assert undone == ["first"]


def test_an_undoing_that_is_interrupted_is_begun_anew() -> None:
    values: dict[str, Any] = {"a": 1, "b": 2}
    interrupts = iter([KeyboardInterrupt, KeyboardInterrupt])

    def undo() -> None:
        values["a"] = 1
        for interrupt in interrupts:
            raise interrupt
        values["b"] = 2

    with pytest.raises(KeyboardInterrupt), Restored(undo):
        values.update(a=3, b=4)
    assert values == {"a": 1, "b": 2}
