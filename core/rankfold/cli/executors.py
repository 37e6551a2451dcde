"""Executors by name, as the command line gives them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread
from types import FrameType
from typing import Any

from rankfold.errors import RankfoldError

_DASK = "dask://"
_PATIENCE = 10  # seconds


@contextmanager
def opened(text: str | None) -> Iterator[Executor | None]:
    """Open the executor that a text stands for; None for None.

    Args:
        text: "dask://HOST:PORT" of a scheduler, "processes:N" or "threads:N".

    Raises:
        RankfoldError: it stands for none, or the scheduler cannot be reached.
    """
    if text is None:
        yield None
    elif text.startswith(_DASK):
        with _dask(text) as client:
            yield client.get_executor()
    else:
        with _local(text) as executor:
            yield executor


def _local(text: str) -> Executor:
    kind, _, count = text.partition(":")
    if kind not in ("processes", "threads") or not count.isdecimal() or int(count) < 1:
        raise RankfoldError(
            f"executor {text!r} is unknown; use dask://HOST:PORT, processes:N or threads:N"
        )
    if kind == "threads":
        return ThreadPoolExecutor(int(count))
    # "spawn", as a forked child would have the locks of BLAS and of other threads in whatever state
    # they were in.
    return _Processes(int(count), mp_context=get_context("spawn"), initializer=_begin)


class _Processes(ProcessPoolExecutor):
    """Processes that end with this one, and that an interrupt leaves ready for the next job.

    One that dies of it while it waits would break the pool, and with it what others are writing.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with _uninterrupted():  # as a process that is started here inherits it
            return super().submit(_interruptible, fn, *args, **kwargs)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off interrupts until the end of the context."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The mask is inherited by a process that is started meanwhile: it cannot be interrupted before
    # it has set its own handler.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Interrupts:
    """Interrupt a worker: end its job, or the next one before that begins.

    Attributes:
        running: whether there is a job.
        stopped: whether there has been an interrupt.
    """

    running = False
    stopped = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self.running:
            raise KeyboardInterrupt


_interrupts = _Interrupts()


def _begin() -> None:
    """Turn this process into a worker."""
    # First the handler, then the mask: an interrupt that came while it was blocked arrives in
    # between.
    signal.signal(signal.SIGINT, _interrupts)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = parent_process()
    if parent is not None:  # it waits for jobs on a pipe that it writes to itself: no end is seen
        Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _interruptible(job: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    _interrupts.running = True
    try:
        # Jobs that were queued when Ctrl-C was pressed must not be done all the same, one after the
        # other.
        if _interrupts.stopped:
            raise KeyboardInterrupt
        return job(*args, **kwargs)
    finally:
        _interrupts.running = False


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # nobody is left to be told, and an exception would only end this thread


def _dask(text: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise RankfoldError(f"executor {text!r} needs dask: pip install 'rankfold[dask]'") from None
    connect: Any = Client
    try:
        return connect(f"tcp://{text.removeprefix(_DASK)}", timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise RankfoldError(f"executor {text!r}: no scheduler answers there ({error})") from None
