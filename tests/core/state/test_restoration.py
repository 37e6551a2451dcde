"""State of the whole process that overlapping calls change and put back."""

from __future__ import annotations

from threading import Event, Thread

from rankfold.state.restoration import Shared


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
