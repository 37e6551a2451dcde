"""`rankfold report`: the page of a plan that lies on disk."""

from __future__ import annotations

from pathlib import Path

import typer

from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan
from rankfold.storage.folder import PLAN, plan_at, saved_at
from rankfold.storage.model_files import known_kind, plan_in


def run(source: Path, output: Path) -> None:
    """Write the page of a compressed model, or of a plan as JSON.

    Raises:
        RankfoldError: there is no plan, or the page cannot be written.
    """
    typer.echo(f"written to {_plan(source).report(output)}")


def _plan(source: Path) -> Plan:
    """Return the plan of a folder, of a file with a whole model, or of a file that is a plan."""
    if known_kind(source) is not None:
        return plan_in(source)
    if not source.is_file():
        return plan_at(source)
    if source.name == PLAN and saved_at(source.parent) is not None:
        return plan_at(source.parent)
    try:
        return Plan.from_json(source.read_bytes())
    except OSError as error:
        raise RankfoldError(f"{str(source)!r} cannot be read: {error}") from None
