"""Changes are put back after interrupts and failures, and by the last of several users."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

import pytest

from rankfold.state.restoration import Restored, Shared, settled


def test_a_state_is_not_read_while_its_last_user_leaves() -> None:
    state = {"threads": 2}
    shared: Shared[str, int] = Shared(state.update)
    entered, leave = Event(), Event()

    def first() -> None:
        with shared.kept(lambda: dict(state)):
            state["threads"] = 1
            entered.set()
            leave.wait()

    thread = Thread(target=first)

    def read() -> dict[str, int]:
        now = dict(state)
        leave.set()
        thread.join(0.2)  # it leaves now, if it can
        return now

    thread.start()
    entered.wait()
    with shared.kept(read):
        state["threads"] = 1
    thread.join()
    assert state == {"threads": 2}


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
