from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest

from rankfold.adapters import timing


def test_a_time_is_the_median_of_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    turns = iter([3.0] * 3 + [1.0, 2.0, 7.0, 9.0, 8.0] + [7.0] * 100)  # after two warm-ups and one

    def work() -> None:
        clock[0] += next(turns)

    assert timing.medians([work], budget=0.0) == (7.0,)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_functions_are_measured_in_turns_and_in_the_order_given(clock: list[float]) -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock[0] += seconds

        return run

    times = timing.medians([work("slow", 2.0), None, work("fast", 1.0)], budget=0.0)
    assert times == (2.0, math.inf, 1.0)
    assert order[-4:] == ["slow", "fast", "slow", "fast"]


def test_a_fast_function_is_read_over_many_passes(clock: list[float]) -> None:
    passes = 0

    def work() -> None:
        nonlocal passes
        passes += 1
        clock[0] += 1e-4

    (seconds,) = timing.medians([work], budget=0.0)
    assert seconds == pytest.approx(1e-4)
    assert passes == 3 + 5 * 10  # two to warm up, one to tell how many, and five readings


def test_turns_go_on_within_the_budget_and_no_longer(clock: list[float]) -> None:
    turns = 0

    def work() -> None:
        nonlocal turns
        turns += 1
        clock[0] += 1.0

    timing.medians([work], budget=7.5)
    assert turns == 3 + 8
    turns = 0
    timing.medians([work], budget=1e9)
    assert turns == 3 + 15


def test_a_reading_waits_for_the_device(clock: list[float]) -> None:
    def wait(result: object) -> None:
        clock[0] += float(str(result))

    assert timing.medians([lambda: 4.0], budget=0.0, wait=wait) == (4.0,)
