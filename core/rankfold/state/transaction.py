"""Changes to objects that are made all together or not at all, and can be taken back.

All are first prepared, then made by one call that runs no Python code: an interrupt, which Python
delivers between two instructions of its own, finds either none of them or all. What was there
before is kept, so that nothing is torn down meanwhile.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import starmap
from typing import Any, TypeAlias

_Call: TypeAlias = tuple[Any, ...]
"""A function of C's and its arguments."""


class Changes:
    """Assignments to be made at once."""

    def __init__(self) -> None:
        self._do: list[_Call] = []
        self._undo: list[_Call] = []

    def item(self, holder: Any, key: Any, value: Any) -> None:
        """Prepare `holder[key] = value`, for a key that the holder has."""
        # A key that is there is replaced in its place, so that the order of a dictionary, in which
        # layers run, is kept.
        self._do.append((operator.setitem, holder, key, value))
        self._undo.append((operator.setitem, holder, key, holder[key]))

    def attribute(self, holder: Any, name: str, value: Any) -> None:
        """Prepare `holder.name = value`, past a `__setattr__` of its class."""
        self._do.append((object.__setattr__, holder, name, value))
        self._undo.append((object.__setattr__, holder, name, getattr(holder, name)))

    def contents(self, holder: dict[Any, Any], values: Mapping[Any, Any]) -> None:
        """Prepare that a dict holds these entries, in this order, and no others."""
        for calls, entries in ((self._do, dict(values)), (self._undo, dict(holder))):
            calls += [(holder.clear,), (holder.update, entries)]

    def make(self) -> None:
        """Make the changes; take them back where one fails."""
        try:
            _run(self._do)
        except BaseException:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Put back what was there when the changes were prepared; may be called at any time."""
        _run(self._undo)


def _run(calls: Iterable[_Call]) -> None:
    """Call functions one after the other, from C."""
    # A deque of length 0 uses up an iterator within C. A `for` loop would be Python, between whose
    # instructions an interrupt can come.
    deque(starmap(operator.call, calls), maxlen=0)
