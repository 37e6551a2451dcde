"""Names and paths shown as they stand: no markup, and nothing that a terminal would obey."""

from __future__ import annotations

from rich.text import Text


def printable(text: str) -> str:
    """The text with control characters and the like as Python writes them in a repr."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def literal(text: str, style: str = "") -> Text:
    """Such a text for a table."""
    return Text(printable(text), style)
