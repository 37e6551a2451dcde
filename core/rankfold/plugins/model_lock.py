"""One call at a time on a model: calls from several threads take turns.

Whatever runs, reads or changes a model does so while no other thread's call works on it or on
anything that is part of both, as where one model is a layer of the other. Calls on models that have
nothing in common go on side by side.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import wraps
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

from rankfold.adapters.base import NamesParts
from rankfold.adapters.capabilities import capabilities
from rankfold.errors import RankfoldError
from rankfold.plugins.registry import registry
from rankfold.state.restoration import Restored, settled

P = ParamSpec("P")
T = TypeVar("T")

_PAUSE = 5e-3
"""Seconds between two looks at whether a model is free: next to nothing against a call."""
_DEADLOCKED = 100
"""Looks after which calls that wait for each other are taken to do so for good."""


_owners: dict[int, _Call] = {}
"""By id of a part, the call that works on it. Only `setdefault` and `pop` change it, one step each,
so that no lock is needed that an interrupt could leave locked."""
_awaited: dict[int, int] = {}
"""By thread that waits, the thread that it waits for."""


def exclusive(*models: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function wait until no other thread's call works on its models, and tidy up.

    Whatever `rankfold.state.restoration` knows to be changed is put back, however the function is
    left.

    Args:
        models: the names of its arguments that are models, or attributes of these ("self.model").
            An argument `adapter`, if there is one, is the adapter of them.
    """

    def exclude(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @wraps(function)
        @settled
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # which says what is wrong with its arguments
            adapter = arguments.get("adapter")
            roots = [_at(arguments, name) for name in models]
            pairs = [(root, _names_parts(root, adapter)) for root in roots]
            # The order matters: what is entered first is left last. So the thread's state is put
            # back while the model is still this call's own, and the model is let go of at the very
            # end.
            this_call = _Call()
            with ExitStack() as stack:
                stack.enter_context(Restored(this_call.release))
                for _, names_parts in pairs:
                    if names_parts is not None:
                        stack.enter_context(Restored(names_parts.thread_state()))
                this_call.take(lambda: [part for pair in pairs for part in _parts(*pair)])
                return function(*args, **kwargs)

        return call

    return exclude


def _at(arguments: dict[str, Any], name: str) -> Any:
    first, _, rest = name.partition(".")
    return attrgetter(rest)(arguments[first]) if rest else arguments[first]


def _names_parts(model: Any, adapter: Any) -> NamesParts | None:
    """Return the adapter of a model if it names parts; None of an unknown model, too."""
    if adapter is None:
        try:
            adapter = registry().adapter(model)
        except RankfoldError:
            # The function itself has a better error, which knows the name of its argument.
            return None
    return capabilities(adapter).names_parts


def _parts(model: Any, names_parts: NamesParts | None) -> Iterable[object]:
    return (model,) if names_parts is None else names_parts.parts(model)


class _Call:
    """A call and what it works on."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._parts: dict[int, object] = {}

    def take(self, parts: Callable[[], Sequence[object]]) -> None:
        """Wait until all parts are free, and take them.

        Args:
            parts: gives what the call works on, which calls that are waited for may change.

        Raises:
            RankfoldError: the call that is waited for waits for one of this thread.
        """
        looks = 0
        while True:
            # One assignment, before anything is taken: whenever an interrupt comes, `release`
            # finds every part this call may own. The parts are kept, so that no other object gets
            # their ids. After they are taken they are listed again: the call that was waited for
            # may have put new parts into the model.
            self._parts = {id(part): part for part in _listed(parts)}
            taken = self._taken()
            if taken is None:
                if {id(part) for part in _listed(parts)} <= self._parts.keys():
                    return
                self.release()
                continue
            key, other = taken
            self.release()
            _awaited[self._thread] = other._thread
            try:
                while _owners.get(key) is other:
                    looks = looks + 1 if self._is_awaited(other) else 0
                    if looks > _DEADLOCKED:
                        # Seen in one look it may be chance, as `_awaited` changes meanwhile.
                        raise RankfoldError(
                            "two threads wait for each other: each has a call of rankfold within a "
                            "call, on a model that the other one works on; call them in turn"
                        )
                    time.sleep(_PAUSE)
            finally:
                _awaited.pop(self._thread, None)

    def release(self) -> None:
        """Let go of everything; nothing happens the second time."""
        for key in self._parts:
            if _owners.get(key) is self:
                _owners.pop(key, None)

    def _taken(self) -> tuple[int, _Call] | None:
        """Take the parts in order; return the first that another thread has, if any."""
        # Sorted, so that two calls whose parts overlap meet at the first part they share, and one
        # of them always gets on. `setdefault` reads and takes in one step of the interpreter: no
        # thread can come between, and an interrupt leaves the part either free or ours.
        for key in sorted(self._parts):
            owner = _owners.setdefault(key, self)
            if owner._thread != self._thread:
                return key, owner
        return None

    def _is_awaited(self, other: _Call) -> bool:
        """Return whether another call waits, directly or through others, for one of this thread."""
        thread: int | None = other._thread
        seen: set[int] = set()
        while thread is not None and thread not in seen:
            if thread == self._thread:
                return True
            seen.add(thread)
            thread = _awaited.get(thread)
        return False


def _listed(parts: Callable[[], Sequence[object]]) -> Sequence[object]:
    """List the parts of a model, whose dictionaries another thread may change by running it."""
    for _ in range(_DEADLOCKED):
        try:
            return parts()
        except RuntimeError:  # "dictionary changed size during iteration"
            time.sleep(_PAUSE)
    return parts()
