"""Tables for terminals and for text, made from cells."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rankfold.console import literal, printable, wide_console

if TYPE_CHECKING:
    from rich.table import Table

_FRAME = 3
"""Letters between the contents of two columns."""
_LEAST = 14
"""The fewest letters that names are shortened to: "layer1…mple.0"."""


@dataclass(frozen=True)
class Contents:
    """Contents of a table.

    Attributes:
        title: above it; "" for none.
        columns: by name, whether its cells are numbers.
        rows: a cell for each column; the first is a name.
        totals: the lines below it.
        brief: the same in fewer letters, for where it is too wide; None where there are none.
        optional: columns that are left out where it is too wide even so, the first ones first.
    """

    title: str
    columns: dict[str, bool]
    rows: tuple[tuple[str, ...], ...]
    totals: str
    brief: Contents | None = None
    optional: tuple[str, ...] = ()


def fitted(contents: Contents, width: int) -> Contents:
    """Return a table whose rows take a line each, with what that takes left out or shortened.

    Args:
        contents: the table.
        width: of the terminal, in letters.
    """
    while contents.brief is not None and sum(_widths(contents)) + 1 > width:
        contents = contents.brief
    for name in contents.optional:
        if _room(contents, width) >= min(_LEAST, _widths(contents)[0] - _FRAME):
            break
        contents = _without(contents, name)
    room = max(_LEAST, _room(contents, width))
    names = shortened([printable(name) for name, *_ in contents.rows], room)
    rows = tuple((name, *row[1:]) for name, row in zip(names, contents.rows, strict=True))
    return replace(contents, rows=rows)


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Return names of at most that many letters: longer ones without their middle.

    The gap goes to the left as far as names need it to differ: layers.0.mlp.up, layers.1.mlp.up.
    """
    middle = most // 2
    for begin in range(middle, -1, -1):
        short = [_cut(name, most, begin) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return [_cut(name, most, middle) for name in names]


def _cut(name: str, most: int, begin: int) -> str:
    if len(name) <= most:
        return name
    return f"{name[:begin]}…{name[len(name) - (most - 1 - begin) :]}"


def numbered(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a number in place of each text, and the lines that say what the numbers stand for."""
    numbers = {text: number for number, text in enumerate(filter(None, dict.fromkeys(texts)), 1)}
    lines = [f"{number}: {text}" for text, number in numbers.items()]
    return [str(numbers.get(text, "")) for text in texts], lines


def _room(contents: Contents, width: int) -> int:
    """Return the letters that are left for the names in the first column."""
    return width - 1 - sum(_widths(contents)[1:]) - _FRAME


def _widths(contents: Contents) -> list[int]:
    """Return the letters that each column takes."""
    from rich.cells import cell_len

    headers = [max(map(cell_len, name.split("\n"))) for name in contents.columns]
    cells = [[cell_len(printable(cell)) for cell in row] for row in contents.rows]
    return [max(column) + _FRAME for column in zip(headers, *cells, strict=True)]


def _without(contents: Contents, column: str) -> Contents:
    index = list(contents.columns).index(column)
    columns = {name: is_number for name, is_number in contents.columns.items() if name != column}
    rows = tuple((*row[:index], *row[index + 1 :]) for row in contents.rows)
    return replace(contents, columns=columns, rows=rows)


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
    shown = fitted(contents, width)
    # Into a string, without colours and in the width of the terminal, as `print` shows it later.
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(as_table(shown))
    console.print(Text(shown.totals))
    assert isinstance(console.file, io.StringIO)
    # rich pads every line to the full width, which would wrap in a narrower window.
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
