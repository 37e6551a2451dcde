"""Names and paths shown as they stand: no markup, and nothing that a terminal would obey."""

from __future__ import annotations

from rich.text import Text

from rankfold.console import printable


def literal(text: str, style: str = "") -> Text:
    """A text for a table or a console."""
    return Text(printable(text), style)
