"""Tables for terminals and for text, made from cells."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankfold.console import literal, wide_console

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Contents:
    """Contents of a table.

    Attributes:
        title: above it; "" for none.
        columns: by name, whether its cells are numbers.
        rows: a cell for each column.
        totals: the lines below it.
    """

    title: str
    columns: dict[str, bool]
    rows: tuple[tuple[str, ...], ...]
    totals: str


def as_table(contents: Contents) -> Table:
    """Build the table for a terminal."""
    from rich.table import Table

    title = literal(contents.title, "table.title") if contents.title else None
    table = Table(title=title, title_justify="left")
    for name, is_number in contents.columns.items():
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    # As literal texts: names of layers come from files, and rich would read "[red]" in one as
    # markup.
    for row in contents.rows:
        table.add_row(*map(literal, row))
    return table


def as_text(contents: Contents) -> str:
    """Render the table and its totals as wide as the terminal."""
    from rich.console import Console
    from rich.text import Text

    width = wide_console().width
    # Into a string, without colours and in the width of the terminal, as `print` shows it later.
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(as_table(contents))
    console.print(Text(contents.totals))
    assert isinstance(console.file, io.StringIO)
    # rich pads every line to the full width, which would wrap in a narrower window.
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
