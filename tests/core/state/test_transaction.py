"""Changes that are made all together or not at all."""

import signal
import time
from collections.abc import Iterator

import pytest

from rankfold.state.transaction import Changes

ENTRIES = 10_000


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __setattr__(self, name: str, value: int) -> None:
        assert name not in vars(self), "immutable"
        super().__setattr__(name, value)


def test_they_are_made_and_taken_back() -> None:
    entries, items, point = {"a": 1, "b": 2}, [1, 2, 3], Point(5)
    other = {"b": 1, "a": 2}
    changes = Changes()
    changes.item(entries, "a", 7)
    changes.item(items, 1, 8)
    changes.attribute(point, "x", 9)
    changes.contents(other, {"c": 3})
    assert (entries, items, point.x) == ({"a": 1, "b": 2}, [1, 2, 3], 5)
    changes.make()
    assert (entries, items, point.x, other) == ({"a": 7, "b": 2}, [1, 8, 3], 9, {"c": 3})
    changes.take_back()
    assert (entries, items, point.x) == ({"a": 1, "b": 2}, [1, 2, 3], 5)
    assert list(other.items()) == [("b", 1), ("a", 2)]


def test_one_that_fails_takes_back_those_before() -> None:
    class Full(dict[str, int]):
        def __setitem__(self, key: str, value: int) -> None:
            if value == 2:
                raise OverflowError
            super().__setitem__(key, value)

    entries, full = {"a": 1}, Full(a=1)
    changes = Changes()
    changes.item(entries, "a", 2)
    changes.item(full, "a", 2)
    with pytest.raises(OverflowError):
        changes.make()
    assert (entries, full) == ({"a": 1}, {"a": 1})


@pytest.fixture
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted(changes: Changes, seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    changes.make()
    while True:  # not signal.pause(): a signal just before it would never wake it
        time.sleep(0.001)


@pytest.mark.usefixtures("_alarm")
def test_an_interrupt_finds_all_of_them_or_none() -> None:
    entries = dict.fromkeys(range(ENTRIES), 0)
    changes = Changes()
    for key in entries:
        changes.item(entries, key, 1)
    start = time.perf_counter()
    changes.make()
    duration = time.perf_counter() - start
    for part in range(1, 9):
        changes.take_back()
        with pytest.raises(KeyboardInterrupt):
            interrupted(changes, duration * part / 8)
        assert len(set(entries.values())) == 1
