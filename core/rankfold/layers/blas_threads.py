"""Number of threads that BLAS takes for a layer: a function of its size alone.

The number of threads changes the order of sums in BLAS, and with it the last bits of a result. So
it depends neither on the other layers of a model, nor on the executor, nor on the call.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rankfold.linalg import LARGE
from rankfold.state.restoration import Lock, Restored, Shared

_PATIENCE = 0.5
"""Seconds that a thread waits for a wake-up before it looks by itself. Exceptions that are set from
another thread, and Ctrl-C on Windows, reach it between two waits only; a person waits that long."""


@contextmanager
def threads_for(order: int) -> Iterator[None]:
    """Compute on matrices of a layer with 1 BLAS thread where they are small, else as BLAS will.

    On small matrices more threads hinder each other. As the limit is one of the whole process, work
    on small and on large layers excludes each other among threads. What runs within must not wait
    for another thread that works on layers.

    Args:
        order: of the Gram matrices.
    """
    if _inside.layer:  # the layer that this thread works on decides for all that it calls
        yield
        return
    threads = None if order > LARGE else 1
    with _turns.taken(threads), limited(threads):
        yield


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Limit BLAS to that many threads within the context; None leaves it as it is.

    The limit is one of the whole process: where calls overlap it lasts until the last one ends.
    """
    if threads is None:
        yield
        return
    with _blas.kept(_blas_libraries) as libraries:
        for library, before in libraries.values():
            if before != threads:
                library.set_num_threads(threads)
        yield


def _blas_libraries() -> dict[str, tuple[Any, int]]:
    """Return the BLAS libraries in use by their files, and how many threads each takes."""
    global _listed
    modules = len(sys.modules)
    # To list what is loaded takes as long as a small layer; libraries come with modules.
    if _listed is None or _listed[0] != modules:
        from threadpoolctl import ThreadpoolController

        _listed = modules, ThreadpoolController().select(user_api="blas").lib_controllers
    return {library.filepath: (library, library.get_num_threads()) for library in _listed[1]}


def _set_threads(before: Mapping[str, tuple[Any, int]]) -> None:
    for library, threads in before.values():
        # Since threadpoolctl 3.8 the thread that set OpenBLAS first is the only one that can, but
        # the last one to leave may be another.
        free = getattr(library, "clear_controlling_thread", None)
        if free is not None:
            free(force=True)
        library.set_num_threads(threads)
        if free is not None:
            free(force=True)


class _Inside(threading.local):
    """Whether this thread works on a layer."""

    layer = False


class _Turns:
    """Work of one kind at a time, in the order of arrival; what is of one kind goes on together."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all users: those of another process, after a fork."""
        self._lock = Lock()
        self._users: dict[object, Hashable] = {}

    @contextmanager
    def taken(self, kind: Hashable) -> Iterator[None]:
        """Wait until nothing of another kind is at work, and keep it out within the context."""
        user = object()
        with Restored(lambda: self._leave(user)):
            with self._lock.held():
                self._users[user] = kind
                while not self._is_next(user, kind):
                    self._lock.wait(_PATIENCE)
            _inside.layer = True
            yield

    def _is_next(self, user: object, kind: Hashable) -> bool:
        earlier = itertools.takewhile(lambda other: other is not user, self._users)
        return all(self._users[other] == kind for other in earlier)

    def _leave(self, user: object) -> None:
        _inside.layer = False
        with self._lock.held():
            self._users.pop(user, None)
            # In this order: where an interrupt comes between the lines this runs once more, and
            # wakes them then.
            self._lock.wake()


_inside = _Inside()
_turns = _Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.forget)
_listed: tuple[int, list[Any]] | None = None
_blas: Shared[str, tuple[Any, int]] = Shared(_set_threads)
