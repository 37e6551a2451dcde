"""A progress bar on long work, shown on terminals only: elapsed < left, and what is worked on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.progress import Progress

_SHOWN: ContextVar[Progress | None] = ContextVar("_SHOWN", default=None)

Advance: TypeAlias = Callable[[str], None]
"""Called with the name of each item as it begins."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show a bar over a number of items, on standard error; nothing where that is no terminal."""
    # Before rich is imported, which a library call in a script has no use for.
    if not sys.stderr.isatty():
        yield _silent
        return
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


def _silent(item: str) -> None:
    """Show nothing."""
