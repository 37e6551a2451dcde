"""A plan as a table."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankfold.console import printable
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.report.literal import literal

_WIDTH = 120


def wide_console() -> Console:
    """Standard output, as wide as the terminal and at least 120 columns elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=max(_WIDTH, console.width))


def plan_text(plan: Plan) -> str:
    """The plan as text, as wide as the terminal."""
    width = wide_console().width
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(plan_table(plan))
    console.print(Text(totals(plan)))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def plan_table(plan: Plan) -> Table:
    """A rich table: layer, op, method, ranks, params, MACs, error, reason."""
    title = literal(f"Plan by {plan.policy}", "table.title") if plan.policy else None
    table = Table(title=title, title_justify="left")
    traced = plan.macs is not None
    for name in ("layer", "op", "method"):
        table.add_column(name, overflow="fold")
    informed = any(layer.predicted is not None for layer in plan.layers)
    output = ("predicted", "measured") if informed else ()
    for name in ("ranks", "params", *(("MACs",) if traced else ()), "error", *output):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("reason", overflow="fold")
    for layer in plan.layers:
        table.add_row(*map(literal, _cells(layer, traced, informed)))
    return table


def totals(plan: Plan) -> str:
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


def change(pair: tuple[int, int]) -> str:
    """Before and after, and the share that is left."""
    before, after = pair
    if before == after:
        return count(before)
    share = f" ({after / before:.1%})" if before else ""
    return f"{count(before)} → {count(after)}{share}"


def count(number: float) -> str:
    """A count with three digits and a unit: 1.23M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _cells(layer: LayerPlan, traced: bool, informed: bool) -> list[str]:
    cells = [layer.path or "(the model)", layer.op, layer.method or "–"]
    cells.append(", ".join(map(str, layer.ranks)))
    cells.append("" if layer.params is None else change(layer.params))
    if traced:
        cells.append("" if layer.macs is None else change(layer.macs))
    cells.append("" if layer.error is None or layer.method is None else f"{layer.error:.4f}")
    if informed:
        cells.extend("" if e is None else f"{e:.4f}" for e in (layer.predicted, layer.measured))
    remarks = [layer.reason, "refitted" if layer.refit else ""]
    if layer.moments in ("channels", "diagonal") and layer.predicted is not None:
        remarks.append(f"moments: {layer.moments} only")
    if layer.sensitivity is not None:
        remarks.append(f"sensitivity {layer.sensitivity:.3g}")
    cells.append("; ".join(remark for remark in remarks if remark))
    return cells
