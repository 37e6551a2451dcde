"""Well-spaced ranks: what a budget chooses from."""

from __future__ import annotations

import math


def spaced(most: int, multiple_of: int, count: int) -> list[int]:
    """Up to about `count` ranks from small to `most`, dense where a rank is a small step.

    Args:
        most: the largest rank, always among them.
        multiple_of: all ranks but `most` are multiples of it, where there are such.
        count: how many.
    """
    if most <= multiple_of:
        return [most]
    steps = most // multiple_of
    if steps <= count:
        chosen = range(1, steps + 1)
        return sorted({*(step * multiple_of for step in chosen), most})
    first = math.log(1.0)
    last = math.log(steps)
    found = {round(math.exp(first + (last - first) * i / (count - 1))) for i in range(count)}
    linear = {round(1 + (steps - 1) * i / (count // 2)) for i in range(count // 2 + 1)}
    return sorted({*(step * multiple_of for step in found | linear), most})
