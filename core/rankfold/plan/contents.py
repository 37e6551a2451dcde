"""A plan in words: as the contents of a table, as a line, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from rankfold.console import change, count, printable
from rankfold.faults import short
from rankfold.plan.table import Contents, numbered
from rankfold.report.facts import LayerFacts, PlanFacts
from rankfold.report.notebook import folded_table

Rows: TypeAlias = tuple[tuple[str, ...], ...]
_COUNTS = {"params": "params", "macs": "MACs"}
_ERRORS = ("error", "predicted", "measured")


def contents(plan: PlanFacts) -> Contents:
    """Tabulate a plan: layer, op, method, ranks, parameters, MACs, errors and reason of each."""
    title = f"Plan by {short(plan.policy)}" if plan.policy else ""
    reasons = [_remarks(layer) for layer in plan.layers]
    counted = [name for name in ("params", "macs") if name == "params" or plan.macs is not None]
    errors = [name for name in _ERRORS if name == "error" or _any(plan, name)]
    columns = dict.fromkeys(("layer", "op", "method"), False)
    columns |= dict.fromkeys(("ranks", *(_COUNTS[name] for name in counted), *errors), True)
    totals = "\n".join(filter(None, (_meanings(plan, errors), _totals(plan))))

    def rows(written: Callable[[tuple[int, int]], str], last: Sequence[str]) -> Rows:
        return tuple(
            (
                layer.path or "(the model)",
                layer.op,
                layer.method or "–",
                ", ".join(map(str, layer.ranks)),
                *("" if (pair := getattr(layer, n)) is None else written(pair) for n in counted),
                *(_error(layer, name) for name in errors),
                reason,
            )
            for layer, reason in zip(plan.layers, last, strict=True)
        )

    numbers, notes = numbered(reasons)
    explained = "\n".join((*map(printable, notes), totals))
    noted = columns | {"note": True}
    optional = ("op", *errors[:-1])
    brief = Contents(title, noted, rows(_share_left, numbers), explained, optional=optional)
    middle = Contents(title, noted, rows(change, numbers), explained, brief)
    return Contents(title, columns | {"reason": False}, rows(change, reasons), totals, middle)


def _share_left(pair: tuple[int, int]) -> str:
    before, after = pair
    return "" if before == after else f"{after / before:.1%}" if before else count(after)


def _any(plan: PlanFacts, name: str) -> bool:
    return any(getattr(layer, name) is not None for layer in plan.layers)


def _error(layer: LayerFacts, name: str) -> str:
    value = getattr(layer, name)
    if value is None or (name == "error" and layer.method is None):
        return ""
    return f"{value:.4f}"


def _remarks(layer: LayerFacts) -> str:
    remarks = [layer.reason, "refitted" if layer.refit else ""]
    if layer.moments not in ("", "patches") and layer.predicted is not None:
        remarks.append(f"moments: {layer.moments}")
    if layer.sensitivity is not None:
        remarks.append(f"sensitivity {layer.sensitivity:.3g}")
    return "; ".join(remark for remark in remarks if remark)


def _meanings(plan: PlanFacts, errors: Sequence[str]) -> str:
    """Say what the columns of errors are of; "" where nothing is replaced."""
    if not plan.replaced:
        return ""
    text = "error: ‖W − Ŵ‖ / ‖W‖ of the weight"
    if len(errors) > 1:
        text += f"; {', '.join(errors[1:])}: ‖y − ŷ‖ / ‖y‖ of the output on the calibration data"
    return text


def summary(plan: PlanFacts) -> str:
    """Say in a line what a plan does."""
    text = f"{short(plan.policy)}: " if plan.policy else ""
    text += f"{len(plan.replaced)} of {len(plan.layers)} layers replaced"
    text += f", parameters {change(plan.model_params)}"
    return text if plan.macs is None else f"{text}, MACs {change(plan.macs)}"


def in_notebook(plan: PlanFacts, name: str) -> str | None:
    """Return a plan as HTML for a notebook, folded to a line; None without Jinja2.

    Args:
        plan: the plan.
        name: of what it is shown for.
    """
    table = contents(plan)
    return folded_table(
        f"{name}: {summary(plan)}", table.columns, table.rows, table.totals.split("\n")
    )


def _totals(plan: PlanFacts) -> str:
    """One line: how many layers are replaced, parameters and MACs before and after."""
    replaced = len(plan.replaced)
    text = f"{replaced} of {len(plan.layers)} layers replaced"
    text += f"; parameters of the model {change(plan.model_params)}"
    if plan.macs is not None:
        text += f"; MACs of its layers {change(plan.macs)}, products within attention not counted"
        before, after = plan.macs
        if after > before:
            text += (
                "; MACs grow: factors of a look-up table are multiplied, and ranks that were asked "
                "for may cost more than a layer; exclude= such layers, or limit Budget(macs=)"
            )
    if plan.loss is not None:
        text += "; loss on held-out examples {:.4g} → {:.4g}".format(*plan.loss)
    if plan.predicted_latency is not None:
        text += f"; time of a pass: predicted {plan.predicted_latency:.1%}"
        text += "" if plan.latency is None else f", measured {plan.latency:.1%}"
        text += " of the original's"
    for trial in plan.trials:
        text += f"\ntried a share of {trial.share:.3f}: score {trial.score:.4g}"
        text += "" if trial.kept else ", too low"
    return "; ".join([text, *map(printable, plan.notes)])
