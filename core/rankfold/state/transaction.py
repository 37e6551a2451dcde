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
        """Prepares `holder[key] = value`, for a key that the holder has."""
        self._do.append((operator.setitem, holder, key, value))
        self._undo.append((operator.setitem, holder, key, holder[key]))

    def attribute(self, holder: Any, name: str, value: Any) -> None:
        """Prepares `holder.name = value`, past a `__setattr__` of its class."""
        self._do.append((object.__setattr__, holder, name, value))
        self._undo.append((object.__setattr__, holder, name, getattr(holder, name)))

    def contents(self, holder: dict[Any, Any], values: Mapping[Any, Any]) -> None:
        """Prepares that a dict holds these entries, in this order, and no others."""
        for calls, entries in ((self._do, dict(values)), (self._undo, dict(holder))):
            calls += [(holder.clear,), (holder.update, entries)]

    def make(self) -> None:
        """Makes the changes; takes them back where one fails."""
        try:
            _run(self._do)
        except BaseException:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Puts back what was there when the changes were prepared; may be called at any time."""
        _run(self._undo)


def _run(calls: Iterable[_Call]) -> None:
    """Calls functions one after the other, from C."""
    deque(starmap(operator.call, calls), maxlen=0)
