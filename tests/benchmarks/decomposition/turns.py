"""Median times of functions that take turns, so that a busy machine slows all of them alike.

`rankfold.adapters.timing.medians` calls every function eight times at least, which is too often for
functions that take seconds, and drops what they return.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LONG = 15.0
"""Seconds above which a function is called only once: a warm-up would change nothing."""
SETTLE = 0.1
"""Seconds of rest before each measurement: the threads of a BLAS spin for a while after a call,
and would take the cores from the next function."""
_WARM = 1.0  # seconds up to which the first call may be far from the usual: it is repeated
_SHORTEST = 0.05
_MOST_REPEATS = 50
_TURNS = ((1.0, 9), (5.0, 5))
_LEAST_TURNS = 3


@dataclass(frozen=True, eq=False)
class Timed:
    """What a function returned first, its median seconds, and of how many turns."""

    result: Any
    seconds: float
    turns: int


def in_turns(functions: Sequence[Callable[[], Any]]) -> list[Timed]:
    """Calls all functions to warm up, then A B C A B C ..., an odd number of times.

    The first call is no measurement, except that of a function that takes longer than `LONG`.
    What is quick is called several times a turn, and its time is the mean of these.
    """
    results, first = [], []
    for function in functions:
        result, seconds = _timed(function, 1)
        results.append(result)
        first.append(_timed(function, 1)[1] if seconds < _WARM else seconds)
    found = [[seconds] if seconds > LONG else [] for seconds in first]
    again = [place for place, seconds in enumerate(first) if seconds <= LONG]
    repeats = [min(_MOST_REPEATS, max(1, round(_SHORTEST / seconds))) for seconds in first]
    for _ in range(_turns(sum(first[place] for place in again))):
        for place in again:
            found[place].append(_timed(functions[place], repeats[place])[1])
    return [
        Timed(result, statistics.median(times), len(times))
        for result, times in zip(results, found, strict=True)
    ]


def _turns(seconds: float) -> int:
    """How many turns of that length there are."""
    return next((turns for most, turns in _TURNS if seconds <= most), _LEAST_TURNS)


def _timed(function: Callable[[], Any], often: int) -> tuple[Any, float]:
    time.sleep(SETTLE)
    began = time.perf_counter()
    for _ in range(often):
        result = function()
    return result, (time.perf_counter() - began) / often
