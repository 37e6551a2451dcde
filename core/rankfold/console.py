"""Texts that people read: nothing that a terminal would obey, and no longer than can be read.

Errors are written with this module, so that it imports nothing heavy before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_SHOWN = 5
_LONGEST = 4000
_END = 500
_LAYOUT = "\n\t"


def printable(text: str) -> str:
    """The text with control characters and the like as Python writes them in a repr.

    Marks that turn the direction of writing are among them: they make a text look like another.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def message(text: str) -> str:
    """What an error says: printable but for its line breaks, and cut in the middle if it is long.

    The remedy stands at the end, so the end is kept.
    """
    if len(text) > _LONGEST:
        left = len(text) - _LONGEST
        text = f"{text[: _LONGEST - _END]} ... [{left} characters more] ... {text[-_END:]}"
    return "".join(c if c in _LAYOUT else printable(c) for c in text)


def some(names: Sequence[object], shown: int = _SHOWN) -> str:
    """The first few of some names and how many there are besides; "nothing" for none."""
    text = ", ".join(str(name) for name in names[:shown]) or "nothing"
    return text + (f" and {len(names) - shown} more" if len(names) > shown else "")


def literal(text: str, style: str = "") -> Text:
    """A text for a table or a console."""
    from rich.text import Text

    return Text(printable(text), style)


_WIDTH = 120


def wide_console() -> Console:
    """Standard output, as wide as the terminal and at least 120 columns elsewhere."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(_WIDTH, console.width))
