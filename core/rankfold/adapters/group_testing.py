"""Search for the layers that a fault of a whole model comes from, by runs with some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_TRIALS = 16
"""Runs that a search may take, besides the first one."""


def blamed(paths: Sequence[str], fault: Callable[[Sequence[str]], str]) -> dict[str, str]:
    """Return by path why layers must be left alone; nothing where all of them together may stay.

    Groups are halved until a fault is that of a layer by itself, or of a group whose halves have
    none. When no more runs may be taken, all layers of a group are left.

    Args:
        paths: of the layers that are to be replaced.
        fault: says what goes wrong where only some of them are replaced; "" if nothing does.
    """
    waiting = [(list(paths), fault(paths))]
    left: dict[str, str] = {}
    trials = 0
    while waiting:
        group, reason = waiting.pop(0)
        if not reason:
            continue
        middle = len(group) // 2
        halves = [] if trials >= _TRIALS or not middle else [group[:middle], group[middle:]]
        trials += len(halves)
        parts = [(half, fault(half)) for half in halves]
        waiting += parts
        # A layer by itself, or one half and the other that differ together alone.
        if not any(reason_of_half for _, reason_of_half in parts):
            left.update(dict.fromkeys(group, reason))
    return left
