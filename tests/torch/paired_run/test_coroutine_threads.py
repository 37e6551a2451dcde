"""Threads that take turns: what they see, draw and raise."""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
import torch

from rankfold_torch.paired_run.coroutine_threads import CoroutineThread


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_it_runs_only_while_it_is_resumed() -> None:
    events: list[str] = []

    def function() -> None:
        events.append("first")
        thread.pause("layer")
        events.append("second")

    thread = CoroutineThread(function, (), "reference")
    assert (events, thread.role) == ([], "reference")
    thread.resume()
    assert (events, thread.paused) == (["first"], "layer")
    thread.resume()
    thread.join()
    assert (events, thread.paused) == (["first", "second"], None)


def test_interleaved_runs_draw_the_same_numbers_and_leave_the_callers() -> None:
    drawn: dict[str, list[float]] = {"a": [], "b": []}

    def run(role: str) -> None:
        for _ in range(3):
            drawn[role].append(float(torch.rand(())))
            threads[role].pause(role)

    threads = {role: CoroutineThread(lambda role=role: run(role), (), role) for role in drawn}  # type: ignore[misc]
    before = torch.get_rng_state()
    for role in "aabaabbb":
        threads[role].resume()
        assert torch.equal(torch.get_rng_state(), before)
    for thread in threads.values():
        thread.join()
    assert drawn["a"] == drawn["b"]
    assert len(set(drawn["a"])) == 3


def test_an_error_is_raised_where_it_is_resumed() -> None:
    def function() -> None:
        thread.pause(1)
        raise LookupError("no such layer")

    thread = CoroutineThread(function, (), "")
    thread.resume()
    with pytest.raises(LookupError, match="no such layer"):
        thread.resume()
    assert thread.paused is None
    thread.join()


@pytest.mark.parametrize("turns", [0, 1])
def test_it_can_be_stopped_anywhere_and_more_than_once(turns: int) -> None:
    events: list[str] = []

    def function() -> None:
        events.append("begun")
        try:
            thread.pause(1)
        except Exception:
            events.append("caught")
        events.append("gone on")

    thread = CoroutineThread(function, (), "")
    for _ in range(turns):
        thread.resume()
    thread.stop()
    thread.stop()
    assert events == ["begun"] * turns
    assert (thread.paused, thread.error) == (None, None)


def test_it_computes_in_the_surroundings_in_which_it_was_made() -> None:
    setting: ContextVar[int] = ContextVar("setting", default=0)
    seen: list[object] = []

    def function() -> None:
        seen.extend([torch.ones(2, 2) @ torch.ones(2, 2), setting.get()])
        setting.set(9)

    token = setting.set(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        thread = CoroutineThread(function, (), "")
    setting.reset(token)
    thread.resume()
    thread.join()
    product, value = seen
    assert isinstance(product, torch.Tensor)
    assert (product.dtype, value) == (torch.bfloat16, 5)
    assert setting.get() == 0


def test_the_module_that_it_was_in_says_where_it_is() -> None:
    sys.modules.pop("rankfold_torch.turns", None)
    with pytest.warns(DeprecationWarning, match=r"has moved to rankfold_torch\.paired_run$"):
        before = importlib.import_module("rankfold_torch.turns")
    assert before.Turn is CoroutineThread
