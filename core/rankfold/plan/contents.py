"""A plan in words: as the contents of a table, as a line, and as HTML for notebooks."""

from __future__ import annotations

from rankfold.console import change, printable
from rankfold.plan.table import Contents
from rankfold.report.facts import LayerFacts, PlanFacts
from rankfold.report.notebook import folded_table


def contents(plan: PlanFacts) -> Contents:
    """Tabulate a plan: layer, op, method, ranks, parameters, MACs, errors and reason of each."""
    traced = plan.macs is not None
    informed = any(layer.predicted is not None for layer in plan.layers)
    columns = dict.fromkeys(("layer", "op", "method"), False)
    columns |= dict.fromkeys(("ranks", "params", *(("MACs",) if traced else ()), "error"), True)
    columns |= dict.fromkeys(("predicted", "measured") if informed else (), True)
    return Contents(
        f"Plan by {plan.policy}" if plan.policy else "",
        columns | {"reason": False},
        tuple(_cells(layer, traced, informed) for layer in plan.layers),
        _totals(plan),
    )


def _cells(layer: LayerFacts, traced: bool, informed: bool) -> tuple[str, ...]:
    cells = [layer.path or "(the model)", layer.op, layer.method or "–"]
    cells.append(", ".join(map(str, layer.ranks)))
    cells.append("" if layer.params is None else change(layer.params))
    if traced:
        cells.append("" if layer.macs is None else change(layer.macs))
    cells.append("" if layer.error is None or layer.method is None else f"{layer.error:.4f}")
    if informed:
        cells.extend("" if e is None else f"{e:.4f}" for e in (layer.predicted, layer.measured))
    remarks = [layer.reason, "refitted" if layer.refit else ""]
    if layer.moments not in ("", "patches") and layer.predicted is not None:
        remarks.append(f"moments: {layer.moments}")
    if layer.sensitivity is not None:
        remarks.append(f"sensitivity {layer.sensitivity:.3g}")
    cells.append("; ".join(remark for remark in remarks if remark))
    return tuple(cells)


def summary(plan: PlanFacts) -> str:
    """Say in a line what a plan does."""
    text = f"{plan.policy}: " if plan.policy else ""
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
    return folded_table(f"{name}: {summary(plan)}", table.columns, table.rows, (table.totals,))


def _totals(plan: PlanFacts) -> str:
    """One line: how many layers are replaced, parameters and MACs before and after."""
    replaced = len(plan.replaced)
    text = f"{replaced} of {len(plan.layers)} layers replaced"
    text += f"; parameters of the model {change(plan.model_params)}"
    if plan.macs is not None:
        text += f"; MACs of its layers {change(plan.macs)}"
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
