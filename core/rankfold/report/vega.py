"""Parts of a Vega-Lite specification that all charts share, and the colours.

Colours are variables of the page's style sheet, so that they follow it in the dark, in print and in
forced colours. Shapes, dashes and labels tell apart what colours do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

Spec: TypeAlias = dict[str, Any]
INK, FAINT, LINE = "var(--ink)", "var(--faint)", "var(--line)"
ACCENT, PAPER = "var(--accent)", "var(--paper)"
HATCH, HATCH_LINE = "url(#hatch)", "var(--hatch)"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": LINE,
        "domainColor": FAINT,
        "tickColor": FAINT,
    },
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": INK},
    "point": {"color": ACCENT},
    "line": {"color": ACCENT, "strokeWidth": 2},
}


def chart(height: int, layers: Sequence[Spec], values: Sequence[Spec] = ()) -> Spec:
    """Return the specification of layers one above the other, as wide as the page lets them be.

    Args:
        height: of the plot, in pixels.
        layers: of `layer`, the lowest first.
        values: of the layers that have none of their own.
    """
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        "layer": list(layers),
        **({"data": {"values": list(values)}} if values else {}),
    }


def layer(values: Sequence[Spec] | str | None, kind: str, encoding: Spec, **mark: Any) -> Spec:
    """Return marks of one kind.

    Args:
        values: a mark each; the name of data that are set when the chart is drawn; or None for
            those of the chart.
        kind: of the marks.
        encoding: what of a mark is read from its values.
        mark: what is the same for all.
    """
    data: Spec = {}
    if values is not None:
        data["data"] = {"name": values} if isinstance(values, str) else {"values": list(values)}
    # The label of the whole chart tells what it shows: hundreds of marks would each be read out.
    return {**data, "mark": {"type": kind, "aria": False, **mark}, "encoding": encoding}


def axis(field: str, title: str | None, *, scale: Spec | None = None, **options: Any) -> Spec:
    """Return a position that is read from a field of numbers.

    Args:
        field: of the values.
        title: of the axis.
        scale: of the numbers.
        options: of the axis.
    """
    position: Spec = {"field": field, "type": "quantitative", "title": title}
    position["axis"] = {"tickCount": 5, **options}
    return position if scale is None else {**position, "scale": scale}


def text(field: str) -> Spec:
    """Return the words of a mark, read from a field."""
    return {"field": field, "type": "nominal"}


def beside(field: str, gap: int) -> Spec:
    """Return how a text stands beside a mark: to its left where the mark is far to the right."""
    right = f"datum.{field} > 0.5 * domain('x')[1]"
    return {
        "align": {"expr": f"{right} ? 'right' : 'left'"},
        "dx": {"expr": f"{right} ? {-gap} : {gap}"},
    }
