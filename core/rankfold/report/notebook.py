"""HTML that notebooks show in place of a repr: a line of summary, and a table to be opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankfold.console import printable
from rankfold.errors import RankfoldError
from rankfold.report.templating import environment


def folded_table(
    title: str,
    columns: Mapping[str, bool],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
) -> str | None:
    """Return HTML for a notebook.

    Args:
        title: the line that is always shown.
        columns: by name, whether its cells are numbers.
        rows: a cell for each column.
        notes: lines below the table.

    Returns:
        None where Jinja2 is not installed: the notebook then shows the repr.
    """
    try:
        template = environment().get_template("notebook.html.j2")
    except RankfoldError:
        return None
    return template.render(
        title=printable(title),
        columns=list(columns.items()),
        rows=[list(map(printable, row)) for row in rows],
        notes=list(map(printable, notes)),
    )
