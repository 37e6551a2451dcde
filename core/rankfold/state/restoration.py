"""Changes for a while that are put back, whatever arrives meanwhile.

An interrupt may come at any line, that of a clean-up among them, and a signal handler may raise
again while the first interrupt is dealt with. So what undoes a change is prepared in full before
anything is changed, is noted in a list before that too, puts everything back however often it runs,
and stays in that list until it has gone through: the frame of the context that is left works the
list off, and so do the frames around it, up to the outermost one of the call (`settled`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

_TRIES = 10
"""How often an undoing that raises is begun anew; more often only its own fault can stop it."""


class Restored(AbstractContextManager[None]):
    """Context in which something is changed; `undo` puts it back afterwards.

    Args:
        undo: puts everything back, however much of it was changed, as often as it is called. It
            runs in the thread that entered.
    """

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo
        self._tries = 0

    def __enter__(self) -> None:
        # Before anything is changed, see above: from here on some frame will undo it.
        _pending.changes.append(self)

    def __exit__(self, *_: object) -> None:
        # Changes made later, whose own exits an interrupt cut off, are undone along with this one.
        changes = _pending.changes
        if self in changes:  # else a frame further out was faster, as with a generator closed late
            _settle(changes.index(self))

    def put_back(self) -> None:
        """Undo the change, unless that has failed too often."""
        self._tries += 1
        if self._tries <= _TRIES:
            self._undo()


class _Pending(threading.local):
    """Changes that this thread has still to put back, the latest last."""

    def __init__(self) -> None:
        self.changes: list[Restored] = []


_pending = _Pending()


def settled(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function put back all that was changed within it, however it is left.

    Twice over: the inner attempt, too, may be interrupted on the way.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        start = len(_pending.changes)
        try:
            try:
                return function(*args, **kwargs)
            finally:
                _settle(start)
        finally:
            _settle(start)

    return call


def _settle(start: int) -> None:
    """Put back all but the first few changes, the latest first; raises what came up meanwhile."""
    changes = _pending.changes
    error: BaseException | None = None
    while True:
        try:
            while len(changes) > start:
                # In this order: an interrupt between the two lines runs the undoing twice, which
                # does nothing the second time; the other way round it would be lost.
                changes[-1].put_back()
                changes.pop()
            break
        except BaseException as raised:  # an interrupt must not keep the rest from being put back
            error = raised
    if error is not None:
        raise error


class Lock:
    """A lock that frames further out let go of where an interrupt kept the inner one from it."""

    def __init__(self) -> None:
        # An RLock knows its owner: letting go of one that is not held raises, which `_release`
        # relies on.
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock within the context."""
        with Restored(self._release):
            self._lock.acquire()
            yield

    def wait(self, seconds: float) -> None:
        """Let go of the held lock until another thread calls `wake`, or for that many seconds.

        An interrupt may leave it held or not, and a thread that waits no more in the list of those
        to wake: `held` lets go either way, and `wake` wakes all there are.
        """
        self._condition.wait(seconds)

    def wake(self) -> None:
        """Wake all threads that wait; the lock is held."""
        self._condition.notify_all()

    def _release(self) -> None:
        with suppress(RuntimeError):  # this thread does not hold it, or no longer
            while True:
                self._lock.release()


class Shared(Generic[K, T]):
    """State of the whole process, as it was before the first of the calls that change it.

    Calls in several threads overlap and end in any order: the first one in takes the state down,
    the last one out puts it back.

    Args:
        restore: puts a state back.
    """

    def __init__(self, restore: Callable[[Mapping[K, T]], object]) -> None:
        self._restore = restore
        self._lock = Lock()
        self._users: set[object] = set()
        self._before: dict[K, T] = {}

    @contextmanager
    def kept(self, read: Callable[[], Mapping[K, T]]) -> Iterator[Mapping[K, T]]:
        """Allow the state to be changed within the context; put it back after the last one.

        Args:
            read: gives the state, or the part of it that is going to be changed.
        """
        user = object()
        with Restored(lambda: self._leave(user)):
            # Read with the lock: what is read while the last user is about to leave would be what
            # that user has changed, and would be put back in the end. The state before is noted by
            # one assignment, ahead of the user: an interrupt between the two leaves values that are
            # right, and that the next first user replaces. Values noted by an earlier user win,
            # since `now` may be what that one has changed. `_leave` restores before it discards the
            # user, so that an interrupt in `_restore` leaves the user there for the next try.
            with self._lock.held():
                now = read()
                self._before = {**now, **self._before} if self._users else dict(now)
                self._users.add(user)
            yield now

    def _leave(self, user: object) -> None:
        with self._lock.held():
            if self._users == {user}:
                self._restore(self._before)
            self._users.discard(user)
