"""Texts that people read: nothing that a terminal would obey, and no longer than can be read.

Errors are written with this module, so that it imports nothing heavy before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_SHOWN = 5
"""Names that a list in a message has unless told: more are not read."""
_LONGEST = 4000
"""Letters of a message: about a page."""
_END = 500
"""Letters of its end that are kept, in which the remedy stands."""
_BEGINNING = _LONGEST - _END - 60  # the words between the two have room in what is left
_LAYOUT = "\n\t"


def printable(text: str) -> str:
    """Return the text with control characters and the like as Python writes them in a repr.

    Marks that turn the direction of writing are among them: they make a text look like another.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def message(text: str) -> str:
    """Return the text of an error: printable but for its line breaks, cut in the middle if long.

    The remedy stands at the end, so the end is kept.
    """
    # Cut before it is gone through, as it may be a whole file, and again for what that adds.
    return _cut("".join(c if c in _LAYOUT else printable(c) for c in _cut(text)))


def _cut(text: str) -> str:
    """Return the beginning and the end of a long text; what was cut once is not cut again."""
    if len(text) <= _LONGEST:
        return text
    left = len(text) - _BEGINNING - _END
    return f"{text[:_BEGINNING]} ... [{left} characters more] ... {text[-_END:]}"


def some(names: Sequence[object], shown: int = _SHOWN) -> str:
    """List the first few of some names and how many there are besides; "nothing" for none."""
    text = ", ".join(str(name) for name in names[:shown]) or "nothing"
    return text + (f" and {len(names) - shown} more" if len(names) > shown else "")


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names by the numbers in them: layers.9 before layers.10."""
    # Numbers of more digits are larger; by their length, as Python reads none of thousands.
    numbers = (part.lstrip("0") for part in re.split("([0-9]+)", name)[1::2])
    texts = re.split("[0-9]+", name)
    keys = [(0, texts[0])]
    for number, text in zip(numbers, texts[1:], strict=True):
        keys += [(len(number), number), (0, text)]
    return keys


def literal(text: str, style: str = "") -> Text:
    """Return a text for a table or a console, taken literally: "[red]" in it is no markup."""
    from rich.text import Text

    return Text(printable(text), style)


def change(pair: tuple[int, int]) -> str:
    """Write a count before and after, and the share that is left."""
    before, after = pair
    if before == after:
        return count(before)
    share = f" ({after / before:.1%})" if before else ""
    return f"{count(before)} → {count(after)}{share}"


def count(number: float) -> str:
    """Write a count with three digits and a unit: 1.23M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


_WIDTH = 120


def wide_console() -> Console:
    """Return standard output as a console, as wide as the terminal and 120 columns elsewhere."""
    from rich.console import Console

    # Into a file or a pipe rich would fold tables at 80 columns, with nobody there to see why.
    console = Console()
    return console if console.is_terminal else Console(width=max(_WIDTH, console.width))
