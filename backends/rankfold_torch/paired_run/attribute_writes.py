"""Methods of a class that several calls watch at the same time, each in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rankfold.state.restoration import Lock, Restored


class Watched:
    """A method of a class that watchers are told of before it runs.

    It is exchanged for the first watcher and put back after the last one, in whatever order they
    come and go; what others exchange meanwhile stays.

    Args:
        owner: the class.
        name: of the method.
    """

    def __init__(self, owner: type, name: str) -> None:
        self._owner = owner
        self._name = name
        self._lock = Lock()
        self._watchers: dict[int, Callable[..., object]] = {}
        self._original: Any = None
        self._method: Any = None

    @contextmanager
    def by(self, watcher: Callable[..., object]) -> Iterator[None]:
        """Call a function inside with the arguments of every call, in all threads."""
        with Restored(lambda: self._leave(watcher)):
            with self._lock.held():
                if not self._watchers:
                    self._exchange()
                # By identity, as two watchers may compare equal. After the exchange: a watcher that
                # is noted is always told.
                self._watchers[id(watcher)] = watcher
            yield

    def _exchange(self) -> None:
        original = getattr(self._owner, self._name)
        watchers = self._watchers

        def watched(*args: Any) -> Any:
            # A copy, since another thread may begin or end its watch during the loop. The dict
            # itself is captured: it fills and empties while this function stays.
            for watcher in tuple(watchers.values()):
                watcher(*args)
            return original(*args)

        self._original, self._method = original, watched
        setattr(self._owner, self._name, watched)

    def _leave(self, watcher: Callable[..., object]) -> None:
        with self._lock.held():
            # Where somebody else has wrapped the method meanwhile, theirs calls ours, which stays
            # and passes on to the original: putting that back would throw their wrapper away.
            ours = vars(self._owner).get(self._name) is self._method
            if ours and not self._watchers.keys() - {id(watcher)}:
                setattr(self._owner, self._name, self._original)
            # Last, so that an interrupt above leaves the watcher there and the next try puts the
            # method back.
            self._watchers.pop(id(watcher), None)


# `nn.Module` has no public way to learn of attributes that are set. The method and its signature
# (module, name, value) are Python's, so this does not depend on the version of PyTorch.
WRITES = Watched(nn.Module, "__setattr__")
"""Attributes that are set."""
