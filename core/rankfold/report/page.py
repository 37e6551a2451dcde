"""The page: everything that a plan says, in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from rankfold.console import printable
from rankfold.errors import RankfoldError
from rankfold.report.call import call_of
from rankfold.report.charts import SCORES, SPECTRUM, charts, spectrum_data
from rankfold.report.facts import PlanFacts, SensitivityFacts
from rankfold.report.model_card import model_card
from rankfold.report.rows import rows_of
from rankfold.report.summary import figures, headline, hints
from rankfold.report.templating import environment
from rankfold.report.words import meanings, spectrum_meanings

_TITLE = 60
"""Letters of a headline in the title of a tab."""


@dataclass(frozen=True)
class _Column:
    name: str
    sort_name: str
    kind: str = "number"


def write(
    plan: PlanFacts, file: str | PathLike[str], sensitivity: SensitivityFacts | None = None
) -> Path:
    """Write the page of a plan, or a model card of it; a file that is there is replaced.

    Args:
        plan: the plan.
        file: to write: a model card where it ends in .md, else an HTML page.
        sensitivity: scores of the model with one layer compressed, where they were measured.

    Returns:
        The path of the file.

    Raises:
        RankfoldError: Jinja2 is not installed, or the file cannot be written or is no path.
    """
    try:
        path = Path(file)
    except TypeError:
        raise RankfoldError(
            f"report: {type(file).__name__} is not a path; give one, 'report.html' for instance"
        ) from None
    text = model_card(plan) if path.suffix == ".md" else rendered(plan, sensitivity)
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:  # a name with a null is a ValueError
        raise RankfoldError(f"cannot write the report to {str(path)!r}: {error}") from None
    return path


def rendered(plan: PlanFacts, sensitivity: SensitivityFacts | None = None) -> str:
    """Return the page of a plan as HTML.

    Args:
        plan: the plan.
        sensitivity: as for `write`.

    Raises:
        RankfoldError: Jinja2 is not installed.
    """
    template = environment().get_template("page.html.j2")
    from markupsafe import Markup  # it comes with Jinja2

    rows = rows_of(plan.layers, sensitivity)
    drawn = charts(plan, rows)
    title = headline(plan)
    informed = any(row.predicted is not None or row.measured is not None for row in rows)
    scripts = {"vega": _asset("vega.js"), "script": _asset("page.js")}
    data = {
        "charts": {chart.name: chart.spec for chart in drawn},
        "spectrum": SPECTRUM,
        "score": SCORES,
        "scores": [row.scores for row in rows],
        "spectra": [[spectrum_data(spectrum) for spectrum in row.spectra] for row in rows],
    }
    call, placeholders = call_of(plan, informed=informed)
    # Autoescaping writes everything from the plan as text. Only files of this package are markup.
    return template.render(
        {name: Markup(text) for name, text in scripts.items()},
        style=Markup(_asset("page.css")),
        policy=_policy(tuple(scripts.values())),
        title=title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…",
        headline=title,
        plan_policy=printable(plan.policy),
        figures=figures(plan, rows),
        hints=hints(plan, rows),
        charts=drawn,
        has_curve=any(chart.name == "curve" for chart in drawn),
        rows=rows,
        printed=sum(row.printed for row in rows),
        columns=_columns(plan, informed=informed),
        has_macs=plan.macs is not None,
        informed=informed,
        words=meanings(plan, informed=informed) + spectrum_meanings(plan),
        call=call,
        placeholders=placeholders,
        command=printable(plan.command),
        version=version("rankfold"),
        data=data,
    )


def _columns(plan: PlanFacts, *, informed: bool) -> list[_Column]:
    columns = [
        _Column("Layer", "order in the model", "text"),
        _Column("What was done", "what was done", "text"),
        _Column("Parameters", "parameters left"),
    ]
    if plan.macs is not None:
        columns.append(_Column("Multiply-accumulates", "multiply-accumulates left"))
    columns.append(_Column("Error of the weight", "error of the weight"))
    if informed:
        columns.append(_Column("Error predicted", "error of the output, predicted"))
        columns.append(_Column("Error measured", "error of the output, measured"))
    return columns


@lru_cache(maxsize=3)
def _asset(name: str) -> str:
    text = (files("rankfold.report") / "assets" / name).read_text(encoding="utf-8")
    # Two sequences end or change how a script is read, wherever they stand in it.
    assert "</script" not in text.lower()
    assert "<!--" not in text
    return text


@lru_cache(maxsize=1)
def _policy(scripts: tuple[str, ...]) -> str:
    """Return the content security policy: these scripts, styles of the page, nothing else."""
    digests = (hashlib.sha256(text.encode()).digest() for text in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
    sources: dict[str, Any] = {
        "default-src": "'none'",
        "script-src": hashes,
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in sources.items())
