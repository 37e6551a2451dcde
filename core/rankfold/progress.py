"""A progress bar on long work, shown on terminals only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from rankfold.console import printable

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = 0

        def advance(item: str) -> None:
            nonlocal started
            # An item is named when it begins, and counts as done when the next one does.
            bar.update(task, completed=started, description=printable(item))
            started += 1

        yield advance


def _silent(item: str) -> None:
    """Show nothing."""
