"""A model card: what the Hub and other people ask of a model, as far as the plan knows it.

Model cards: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. The header is that of
the Hugging Face Hub.
"""

from __future__ import annotations

import re
from importlib.metadata import version

from rankfold.console import printable
from rankfold.report.call import call_of
from rankfold.report.facts import PlanFacts
from rankfold.report.rows import Change, rows_of
from rankfold.report.summary import figures, headline
from rankfold.report.templating import environment
from rankfold.report.words import meanings, method_name

_SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|~-])")


def model_card(plan: PlanFacts) -> str:
    """Return a model card in Markdown, with what its author has yet to say in capital letters.

    Args:
        plan: the plan.

    Raises:
        RankfoldError: Jinja2 is not installed.
    """
    template = environment().get_template("model_card.md.j2")
    from markupsafe import Markup  # it comes with Jinja2

    rows = rows_of(plan.layers)
    informed = any(row.predicted is not None or row.measured is not None for row in rows)
    call, placeholders = call_of(plan, informed=informed)
    return template.render(
        headline=headline(plan),
        figures=figures(plan, rows),
        words=meanings(plan, informed=informed),
        plan_policy=_plain(printable(plan.policy)),
        layers=[
            (_plain(layer.path), method_name(layer.method or ""), layer.ranks, _left(layer.params))
            for layer in plan.replaced
        ],
        # Within a fence nothing is markup but the end of the fence.
        call=Markup(call.replace("```", "'''")),
        placeholders=placeholders,
        version=version("rankfold"),
    )


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is; the template escapes what HTML would read."""
    return _SIGNS.sub(r"\\\1", printable(text))


def _left(params: tuple[int, int] | None) -> str:
    return "" if params is None else Change(*params).percent
