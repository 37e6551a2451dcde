"""`rankfold report`: the page of a plan that lies on disk."""

from __future__ import annotations

from pathlib import Path

import typer

from rankfold.cli.plans import plan_at


def run(source: Path, output: Path) -> None:
    """Write the page of a compressed model, or of a plan as JSON.

    Raises:
        RankfoldError: there is no plan, or the page cannot be written.
    """
    typer.echo(f"written to {plan_at(source).report(output)}")
