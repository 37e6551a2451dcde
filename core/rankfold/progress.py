"""Progress of long work: how much is done, the time left, and what is worked on.

A bar on terminals and in notebooks; elsewhere lines of the logger "rankfold" at level INFO.
"""

from __future__ import annotations

import html
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.progress import Progress

_SHOWN: ContextVar[Progress | None] = ContextVar("_SHOWN", default=None)
_PAUSE = 0.1
"""Seconds between two messages to a notebook: each is drawn anew by the browser."""

_SILENCE = 5.0
"""Seconds between two lines of a log: a run of an hour has some hundred."""
_LOG = logging.getLogger("rankfold")

Advance: TypeAlias = Callable[[str], None]
"""Called with the name of each item as it begins."""


def progress(what: str, total: int) -> AbstractContextManager[Advance]:
    """Show a bar over a number of items, on standard error or in a notebook; or log it."""
    # Before rich is imported, which a library call in a script has no use for.
    if sys.stderr.isatty():
        return _on_terminal(what, total)
    show = _of_notebook()
    if show is not None:
        return _in_notebook(what, total, show)
    return _in_log(what, total) if _LOG.isEnabledFor(logging.INFO) else _nowhere()


@contextmanager
def _nowhere() -> Iterator[Advance]:
    yield _silent


@contextmanager
def _on_terminal(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from rankfold.console import printable

    # A bar inside another is a second line: the terminal can be written to by one of them only.
    around = _SHOWN.get()
    if around is None:
        shown = Progress(
            TextColumn("{task.fields[what]}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
    else:
        shown = around
    with ExitStack() as stack:
        if around is None:
            stack.enter_context(shown)
            stack.callback(_SHOWN.reset, _SHOWN.set(shown))
        task = shown.add_task("", total=total, what=what)
        if around is not None:
            stack.callback(shown.remove_task, task)
            stack.callback(shown.refresh)
        started = 0

        def advance(item: str) -> None:
            nonlocal started
            # An item is named when it begins, and counts as done when the next one does.
            shown.update(task, completed=started, description=printable(item))
            started += 1

        yield advance


def _of_notebook() -> Callable[..., Any] | None:
    """Return IPython's `display` where a notebook runs this; None elsewhere."""
    # A notebook has imported IPython before it runs anything.
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    if get_shell is None or type(get_shell()).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import display

    show: Callable[..., Any] = display
    return show


@contextmanager
def _in_notebook(what: str, total: int, show: Callable[..., Any]) -> Iterator[Advance]:
    # By the display itself, of which every notebook has one: rich's bars need ipywidgets in the
    # kernel and in the front end.
    begun = time.monotonic()
    handle = show(_bar(what, 0, total, 0.0, ""), raw=True, display_id=True)
    started, last = 0, begun

    def advance(item: str) -> None:
        nonlocal started, last
        now = time.monotonic()
        if now - last >= _PAUSE or not started:
            handle.update(_bar(what, started, total, now - begun, item), raw=True)
            last = now
        started += 1

    try:
        yield advance
    finally:
        handle.update({"text/plain": "", "text/html": ""}, raw=True)


class _Pace:
    """Time of the log's last line, of whichever bar."""

    last = 0.0


@contextmanager
def _in_log(what: str, total: int) -> Iterator[Advance]:
    from rankfold.console import printable

    begun = time.monotonic()
    started = 0

    def advance(item: str) -> None:
        nonlocal started
        now = time.monotonic()
        # Short work has no line at all.
        if started and now - max(begun, _Pace.last) >= _SILENCE:
            _Pace.last = now
            left = _clock((now - begun) / started * (total - started))
            share = started / max(1, total)
            name = f": {printable(item)}" if item else ""
            _LOG.info("%s %d/%d (%.0f %%), %s left%s", what, started, total, 100 * share, left,
                      name)  # fmt: skip
        started += 1

    yield advance


def _bar(what: str, done: int, total: int, seconds: float, item: str) -> dict[str, str]:
    from rankfold.console import printable

    left = f" &lt; {_clock(seconds / done * (total - done))}" if done else ""
    text = f"{what} {done}/{total} {printable(item)}".rstrip()
    return {
        "text/plain": text,
        "text/html": f"{html.escape(what)} <progress value={done} max={max(1, total)}></progress> "
        f"{done}/{total} {_clock(seconds)}{left} {html.escape(printable(item))}",
    }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _silent(item: str) -> None:
    """Show nothing."""
