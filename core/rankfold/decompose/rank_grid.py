"""Grids of ranks that a budget chooses from."""

from __future__ import annotations

import math


def spaced(most: int, multiple_of: int, count: int) -> list[int]:
    """Return up to about `count` ranks, geometrically and linearly spaced.

    Args:
        most: the largest rank, always in the grid.
        multiple_of: all ranks but `most` are multiples of it, where there are such.
        count: of ranks.
    """
    if most <= multiple_of:
        return [most]
    steps = most // multiple_of
    if steps <= count:
        chosen = range(1, steps + 1)
        return sorted({*(step * multiple_of for step in chosen), most})
    # errors fall fast at small ranks, where geometric steps are fine; costs are linear in the rank,
    # and linear steps keep those of large ranks from being too far apart for a budget
    last = math.log(steps)
    geometric = {round(math.exp(last * i / (count - 1))) for i in range(count)}
    linear = {round(1 + (steps - 1) * i / (count // 2)) for i in range(count // 2 + 1)}
    return sorted({*(step * multiple_of for step in geometric | linear), most})
