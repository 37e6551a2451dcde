"""The first lines of the page: what was saved, what it cost, and what to look at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rankfold.console import printable
from rankfold.report.facts import PlanFacts
from rankfold.report.rows import Change, Row, percent

_FIRST = 3
"""Layers that are named in a list of what to look at."""
_APART = 2.0
"""Factor between a measured and a predicted error that is worth a word."""
_LARGE = 0.02
"""Share of the cost from which a layer that is left alone is worth a word."""


@dataclass(frozen=True)
class Figure:
    """One number of the summary.

    Attributes:
        name: what it is of.
        value: the number that counts.
        detail: where it comes from.
    """

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Hint:
    """Something to look at.

    Attributes:
        text: what it is.
        rows: the layers that it names.
    """

    text: str
    rows: tuple[Row, ...] = ()


def headline(plan: PlanFacts) -> str:
    """Say in a sentence or two what the plan does."""
    replaced, total = len(plan.replaced), len(plan.layers)
    if not replaced:
        return f"None of the {total} layers is replaced: the model stays as it is."
    layers, verb = "layer" if total == 1 else "layers", "is" if replaced == 1 else "are"
    text = f"{replaced} of {total} {layers} {verb} replaced by smaller ones. "
    text += f"The model keeps {percent(Change(*plan.model_params).share)} of its parameters"
    if plan.macs is not None and plan.macs[0]:
        text += f" and {percent(Change(*plan.macs).share)} of its multiply-accumulates"
    return f"{text}."


def figures(plan: PlanFacts, rows: Sequence[Row]) -> list[Figure]:
    """Return the numbers of the summary; those that are not known say how to get them."""
    params = Change(*plan.model_params)
    items = [Figure("Parameters", params.percent, params.text)]
    if plan.macs is None:
        items.append(Figure("Multiply-accumulates", "not counted", "pass example inputs=x"))
    else:
        macs = Change(*plan.macs)
        items.append(Figure("Multiply-accumulates", macs.percent, f"{macs.text} for each pass"))
    items.append(_latency(plan))
    if plan.loss is None:
        detail = "pass calibration=batches to have it measured"
        items.append(Figure("Loss on held-out examples", "not measured", detail))
    else:
        items.append(_loss(*plan.loss))
    errors = [row.output_error for row in rows if row.replaced and row.output_error is not None]
    if errors:
        what = "outputs" if any(row.predicted is not None for row in rows) else "weights"
        detail = f"largest {max(errors):.2g}; of the {what} of replaced layers"
        items.append(Figure("Typical error of a layer", f"{median(errors):.2g}", detail))
    return items


def _loss(before: float, after: float) -> Figure:
    # The built-in losses measure the distance from the original, which has none from itself.
    if before == 0.0:
        detail = "of the outputs from the original's; 0 is equal"
        return Figure("Distance on held-out examples", f"{after:.3g}", detail)
    detail = f"the original has {before:.3g}; lower is better"
    return Figure("Loss on held-out examples", f"{after:.3g}", detail)


def _latency(plan: PlanFacts) -> Figure:
    name = "Time of a pass"
    if plan.latency is not None:
        detail = "measured, of the original's"
        if plan.predicted_latency is not None:
            detail += f"; predicted {percent(plan.predicted_latency)}"
        return Figure(name, percent(plan.latency), detail)
    if plan.predicted_latency is not None:
        detail = "predicted, of the original's; not measured"
        return Figure(name, percent(plan.predicted_latency), detail)
    return Figure(name, "not measured", "rf.Budget(latency=0.5) measures it")


def hints(plan: PlanFacts, rows: Sequence[Row]) -> list[Hint]:
    """Return what a reader should look at first."""
    replaced = [row for row in rows if row.replaced]
    named: list[Hint] = []
    worst = sorted(
        (row for row in replaced if row.output_error is not None),
        key=lambda row: -(row.output_error or 0.0),
    )[:_FIRST]
    if len(replaced) > 1:
        named.append(Hint("Largest errors:", tuple(worst)))
    apart = [row for row in replaced if _are_apart(row)]
    if apart:
        text = f"Measured at more than {_APART:.0f} times the predicted error:"
        named.append(Hint(text, tuple(apart[:_FIRST])))
    left = sorted((r for r in rows if not r.replaced), key=lambda row: -_cost(row))
    total = sum(map(_cost, rows))
    large = [row for row in left if total and _cost(row) >= _LARGE * total][:_FIRST]
    if large:
        named.append(Hint("Largest layers left alone:", tuple(large)))
    reasons = Counter(row.note for row in left if row.note)
    if left and reasons:
        reason, times = reasons.most_common(1)[0]
        if times > 1:
            named.append(Hint(f"Left alone, {times} of {len(left)} layers: {reason}"))
    return [*named, *(Hint(f"The policy notes: {printable(note)}") for note in plan.notes)]


def _are_apart(row: Row) -> bool:
    if row.measured is None or row.predicted is None:
        return False
    return row.measured > _APART * row.predicted


def _cost(row: Row) -> int:
    change = row.macs or row.params
    return 0 if change is None else change.before
