"""Median times, measured in turns so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

LAYER = 0.3
"""Seconds after which no further turn of the forms of a layer begins."""
MODEL = 3.0
"""Seconds after which no further turn of whole models begins."""
_TURNS = (5, 15)
"""Fewest and most turns: a median of five passes over one slow pass in either direction."""
_WARM_UPS = 2
"""The first pass compiles, the second fills caches."""
_SHORTEST = 1e-3
"""Seconds that a reading covers at least: a clock of microseconds is then exact to 0.1 %."""
_MOST_REPEATS = 50
"""Passes of a reading at most: those of less than 20 µs are read over a shorter time."""


def medians(
    passes: Sequence[Callable[[], object] | None],
    budget: float,
    wait: Callable[[object], object] = lambda result: None,
) -> tuple[float, ...]:
    """Return the median seconds of each of some functions.

    Args:
        passes: the functions; None stands for what cannot be done, which takes forever.
        budget: seconds after which no further turn begins.
        wait: called with the last result before a clock is read: waits for the device.
    """

    def seconds(function: Callable[[], object], often: int) -> float:
        result: object = None
        began = time.perf_counter()
        for _ in range(often):
            result = function()
        wait(result)
        return (time.perf_counter() - began) / often

    runnable = [function for function in passes if function is not None]
    # All are warm before the first clock is read: what one leaves in caches then harms none of
    # them.
    for function in runnable:
        for _ in range(_WARM_UPS):
            seconds(function, 1)
    # The number of passes per reading is that of a warm pass; with a cold one, which compiles, a
    # fast function would be read once only.
    repeats = [_repeats(seconds(function, 1)) for function in runnable]
    times: list[list[float]] = [[] for _ in runnable]
    began = time.perf_counter()
    # In turns, so that a change of clock rate or of load meets all functions and not just one. The
    # fewest turns are taken whatever the budget says.
    for turn in range(_TURNS[1]):
        if turn >= _TURNS[0] and time.perf_counter() - began > budget:
            break
        for function, samples, often in zip(runnable, times, repeats, strict=True):
            samples.append(seconds(function, often))
    measured = map(statistics.median, times)
    # In the order that was given; what cannot be done is slower than everything.
    return tuple(math.inf if function is None else next(measured) for function in passes)


def _repeats(once: float) -> int:
    return min(_MOST_REPEATS, max(1, round(_SHORTEST / max(once, 1e-9))))
