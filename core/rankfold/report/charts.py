"""The charts of the page: what is drawn, and the same in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankfold.report.facts import PlanFacts, TradeoffFacts, TrialFacts
from rankfold.report.rows import Change, Row, percent
from rankfold.report.spectra import Spectrum
from rankfold.report.vega import (
    ACCENT,
    HATCH,
    HATCH_LINE,
    INK,
    PAPER,
    Spec,
    axis,
    beside,
    chart,
    layer,
    text,
)

_FEWEST = 3
"""Layers that a chart of layers against each other needs: two show what the table does."""
_HEIGHT = 220
"""Of a chart, in pixels."""
_SMALL = 1e-3
"""Below it numbers are written as powers of ten."""


@dataclass(frozen=True)
class Chart:
    """One chart of the page.

    Attributes:
        name: of its element.
        title: above it.
        words: what it shows, for those who do not see it.
        note: how to read it.
        spec: of Vega-Lite, with its data.
    """

    name: str
    title: str
    words: str
    note: str
    spec: Spec


def charts(plan: PlanFacts, rows: Sequence[Row]) -> list[Chart]:
    """Return the charts of the whole network."""
    model = plan.macs if plan.macs is not None and plan.macs[0] else plan.model_params
    drawn = [_costs(plan, rows)]
    if plan.tradeoff is not None and plan.tradeoff.points:
        drawn.append(_curve(plan.tradeoff))
    tried = [trial for trial in plan.trials if math.isfinite(trial.score)]
    if len(tried) > 1:
        drawn.append(_trials(tried))
    scored = [row for row in rows if row.scores]
    if scored:
        drawn.append(_sensitivity(scored, len(rows)))
    bargain = _payoff(rows, Change(*model).before)
    return drawn if bargain is None else [*drawn, bargain]


def _costs(plan: PlanFacts, rows: Sequence[Row]) -> Chart:
    """Draw the network as bars of its layers, before and after, as shares of the original."""
    changes = [("parameters", plan.model_params, [row.params for row in rows])]
    if plan.macs is not None and plan.macs[0]:
        changes.append(("multiply-accumulates", plan.macs, [row.macs for row in rows]))
    pieces: list[Spec] = []
    for name, model, layers in changes:
        for column, when in enumerate(("before", "after")):
            share = percent(model[column] / max(1, model[0]))
            pieces += _pieces(f"{name}, {when} {share}", model, layers, rows, column)
    names = list(dict.fromkeys(piece["bar"] for piece in pieces))
    options = {"domain": False, "ticks": False, "labelExpr": "split(datum.label, ', ')"}
    y = {"field": "bar", "type": "nominal", "sort": names, "title": None, "axis": options}
    x = axis(
        "share",
        "share of the original",
        scale={"domain": [0, 1], "nice": False},
        values=[0, 0.25, 0.5, 0.75, 1],
        format=".0%",
        grid=False,
    )
    states = {"domain": ["replaced", "left alone"], "range": [ACCENT, HATCH]}
    fill = {"field": "state", "type": "nominal", "scale": states, "legend": None}
    tooltip = [
        {"field": "layer", "title": "layer"},
        {"field": "text", "title": "share of the original"},
        {"field": "state", "title": "it is"},
    ]
    stacked = {"y": y, "order": {"field": "row"}, "detail": {"field": "row"}}
    bars = {**stacked, "x": {**x, "stack": "zero"}, "fill": fill, "tooltip": tooltip}
    middles = {**stacked, "x": {**x, "stack": "zero", "bandPosition": 0.5}, "text": text("layer")}
    # A name stands in its piece where there is room for it, at about 6 pixels a letter.
    fits = "datum.state == 'replaced' && width * datum.share > 6.5 * length(datum.layer) + 8"
    opacity = {"expr": f"{fits} ? 1 : 0"}
    marks = [
        layer(None, "bar", bars, stroke=PAPER, strokeWidth=1),
        layer(None, "text", middles, color=PAPER, fontSize=11, opacity=opacity),
    ]
    return Chart(
        "costs",
        "The network, layer by layer",
        f"Bars of all layers in the model's order. {'; '.join(names)}.",
        "Each piece is a layer, in the model's order. Solid pieces are replaced, hatched ones stay "
        "as they are. Point at a piece for its name, or click it to open its row.",
        chart(40 * len(names), marks, pieces),
    )


def _pieces(
    bar: str,
    model: tuple[int, int],
    layers: Sequence[Change | None],
    rows: Sequence[Row],
    column: int,
) -> list[Spec]:
    """Return the pieces of one bar: a layer each, and what is in no layer."""
    sizes = [
        (row.index, row.name, change.after if column else change.before, row.replaced)
        for row, change in zip(rows, layers, strict=True)
        if change is not None
    ]
    rest = model[column] - sum(size for _, _, size, _ in sizes)
    sizes.append((len(rows), "everything else", rest, False))
    return [
        {
            "bar": bar,
            "row": index,
            "layer": name,
            "state": "replaced" if replaced else "left alone",
            "share": round(size / max(1, model[0]), 6),
            "text": percent(size / max(1, model[0])),
        }
        for index, name, size, replaced in sizes
        if size > 0
    ]


def _payoff(rows: Sequence[Row], total: int) -> Chart | None:
    """Draw what each replaced layer saves of the model against its error; None for few layers."""
    points: list[Spec] = []
    for row in rows:
        change = row.macs or row.params
        if row.replaced and change is not None and row.output_error is not None and total:
            saved = (change.before - change.after) / total
            point = {"layer": row.name, "row": row.index, "saved": saved, "error": row.output_error}
            points.append({**point, "text": percent(saved)})
    if len(points) < _FEWEST:
        return None
    best = max(points, key=lambda point: point["saved"])
    worst = max(points, key=lambda point: point["error"])
    named = [best] if best is worst else [best, worst]
    position = {
        # In a network of many layers each saves little: ticks are a fraction of a percent apart.
        "x": axis("saved", "saved, share of the model", format=".2~%"),
        "y": axis("error", "error of the layer"),
    }
    tooltip = [
        {"field": "layer"},
        {"field": "text", "title": "saved"},
        {"field": "error", "title": "error", "format": ".3f"},
    ]
    marks = [
        layer(points, "point", {**position, "tooltip": tooltip}, filled=True, size=60),
        layer(named, "text", {**position, "text": text("layer")}, **beside("saved", 8)),
    ]
    return Chart(
        "payoff",
        "What each layer saves, and its error",
        f"{best['layer']} saves most, {best['text']} of the model, at an error of "
        f"{best['error']:.2g}. {worst['layer']} has the largest error, {worst['error']:.2g}, and "
        f"saves {worst['text']}.",
        "Each dot is a replaced layer. Dots at the lower right are a good bargain. One at the "
        "upper left loses much for little: exclude such a layer, or give it a higher rank.",
        chart(_HEIGHT, marks),
    )


def _curve(tradeoff: TradeoffFacts) -> Chart:
    """Draw the least predicted loss at each share of the cost, with the plan on it."""
    what = "multiply-accumulates" if tradeoff.resource == "macs" else "parameters"
    informed = tradeoff.measure == "loss"
    title = "predicted rise of the loss" if informed else "predicted error"
    note = (
        "It is predicted from the moments of the data, and good for comparing plans rather than "
        "for its size."
        if informed
        else "The error is the root mean square over all layers."
    )
    share, loss = tradeoff.plan
    # Losses on data span many powers of ten, of which a linear axis shows the last. The original
    # has none, and no place on a logarithmic one.
    points = [{"share": s, "loss": v} for s, v in tradeoff.points if v > 0 or not informed]
    here = [{"share": share, "loss": loss, "text": f"this plan, {percent(share)}"}]
    small = max((point["loss"] for point in points), default=1.0) < _SMALL
    options = {"format": "~e" if small and informed else "~g", "tickCount": 4}
    position = {
        "x": axis(
            "share", f"share of the {what}", scale={"domain": [0, 1], "nice": False}, format=".0%"
        ),
        "y": axis("loss", title, scale={"type": "log"} if informed else None, **options),
    }
    marks = [
        layer(points, "line", position),
        layer(here, "point", position, shape="diamond", filled=True, size=140, color=INK),
        layer(here, "text", {**position, "text": text("text")}, dy=-8, **beside("share", 10)),
    ]
    least, most = tradeoff.points[-1]
    return Chart(
        "curve",
        "Cost against predicted loss",
        f"This plan is at {percent(share)} of the {what} with a {title} of {loss:.3g}. The "
        f"cheapest model on offer is at {percent(least)} with {most:.3g}.",
        f"Along the line each model is the best on offer at its cost. {note} Where the line bends "
        "up to the left, the next saving costs much more than the last.",
        chart(_HEIGHT, marks if loss > 0 or not informed else marks[:1]),
    )


def _sensitivity(rows: Sequence[Row], layers: int) -> Chart:
    """Draw the scores of the model with one layer compressed, over the place of the layer."""
    original = rows[0].scores[0][1]
    points = [
        {
            "row": row.index,
            "layer": row.name,
            "score": score,
            "text": f"{percent(share)} of its cost: {score:.4g}",
        }
        for row in rows
        for share, score in row.scores[1:]
    ]
    lines = [
        {
            "row": row.index,
            "score": max(score for _, score in row.scores),
            "least": min(score for _, score in row.scores),
        }
        for row in rows
    ]
    worst = sorted(rows, key=lambda row: min(score for _, score in row.scores))[:2]
    named = [
        {"row": row.index, "layer": row.name, "score": min(score for _, score in row.scores)}
        for row in worst
    ]
    scale = {"zero": False, "padding": 12}
    x = axis("row", "layers, in the model's order", scale={"domain": [-1, layers]}, labels=False)
    x["axis"] |= {"grid": False, "ticks": False}
    position = {"x": x, "y": axis("score", "score", scale=scale)}
    tooltip = [{"field": "layer"}, {"field": "text", "title": "alone, at"}]
    marks = [
        layer([{"score": original}], "rule", {"y": position["y"]}, strokeDash=[4, 3]),
        layer(lines, "rule", {**position, "y2": {"field": "least"}}, color=HATCH_LINE),
        layer(points, "point", {**position, "tooltip": tooltip}, filled=True, size=45),
        layer(named, "text", {**position, "text": text("layer")}, **beside("row", 8)),
    ]
    names = ", ".join(f"{point['layer']} at {point['score']:.4g}" for point in named)
    return Chart(
        "sensitivity",
        "The score when one layer alone is compressed",
        f"The original scores {original:.4g}. The lowest scores are those of {names}.",
        "Each line is a layer, each dot the score of the model with this layer alone compressed. "
        "The lower the dot, the more the layer is needed; the dashed line is the original.",
        chart(_HEIGHT, marks),
    )


def _scores_of_layer() -> Spec:
    x = axis("share", "what is left of the layer's cost", scale={"domain": [0, 1]}, format=".0%")
    y = axis("score", "score of the model", scale={"zero": False, "padding": 10})
    return chart(150, [layer("values", "line", {"x": x, "y": y}, point={"filled": True})])


def _trials(trials: Sequence[TrialFacts]) -> Chart:
    """Draw the scores of the models that a budget tried."""
    first, *tried = trials
    points = [
        {
            "share": trial.share,
            "score": trial.score,
            "state": "good enough" if trial.kept else "too low",
            "text": f"{percent(trial.share)}: {trial.score:.4g}",
        }
        for trial in tried
    ]
    original = [{"score": first.score, "share": 0.0, "text": f"original {first.score:.4g}"}]
    scale = {"zero": False, "padding": 12}
    position = {
        "x": axis("share", "share of the cost", scale={"domain": [0, 1]}, format=".0%"),
        "y": axis("score", "score", scale=scale),
    }
    colours = {"symbolFillColor": ACCENT, "symbolStrokeColor": ACCENT, "labelColor": INK}
    shapes = {"domain": ["good enough", "too low"], "range": ["circle", "cross"]}
    legend = {"title": None, "orient": "top", "labelFontSize": 12, **colours}
    shape = {"field": "state", "type": "nominal", "scale": shapes, "legend": legend}
    tooltip = [{"field": "text", "title": "tried"}, {"field": "state", "title": "it is"}]
    marks = [
        layer(original, "rule", {"y": position["y"]}, strokeDash=[4, 3]),
        layer(original, "text", {**position, "text": text("text")}, align="left", dx=4, dy=-6),
        layer(
            points, "point", {**position, "shape": shape, "tooltip": tooltip}, filled=True, size=90
        ),
    ]
    words = f"{len(tried)} smaller models were tried; the original scores {first.score:.4g}."
    kept = [trial for trial in tried if trial.kept]
    if kept:
        best = min(kept, key=lambda trial: trial.share)
        words += f" The cheapest that is good enough has {percent(best.share)} of the cost and "
        words += f"scores {best.score:.4g}."
    return Chart(
        "trials",
        "Models that were tried",
        words,
        "Each mark is a model that was compressed and then scored by the function evaluate.",
        chart(_HEIGHT, marks),
    )


def spectrum_data(spectrum: Spectrum) -> Spec:
    """Return the data of one spectrum, which `SPECTRUM` draws."""
    # As short as can be: of a large network these are most of the page.
    return {
        "ranks": " ".join(map(str, spectrum.ranks.tolist())),
        "values": " ".join(f"{value:.3g}" for value in spectrum.values.tolist()),
        "marks": [[mark.rank, mark.text, mark.kind] for mark in spectrum.marks],
    }


def _spectrum() -> Spec:
    x = axis("rank", "rank", scale={"nice": False, "domainMin": 0}, grid=False)
    scale = {"type": "log", "nice": False}
    ticks = [round(first * 10.0**-power, 7) for power in range(7) for first in (1.0, 0.5, 0.2)]
    y = axis("value", "singular value", scale=scale, values=ticks, format="~g", grid=False)
    kinds = ["chosen", "evbmf", "energy"]
    dashes = {"domain": kinds, "range": [[1, 0], [6, 3], [1, 3]]}
    dash = {"field": "kind", "type": "nominal", "scale": dashes, "legend": None}
    line = {"expr": "8 + 15 * datum.line"}
    width = {"expr": "datum.kind == 'chosen' ? 2 : 1.2"}
    return chart(
        150,
        [
            layer("values", "line", {"x": x, "y": y}),
            layer("marks", "rule", {"x": x, "strokeDash": dash}, strokeWidth=width),
            layer("marks", "text", {"x": x, "text": text("text")}, y=line, **beside("rank", 5)),
        ],
    )


SPECTRUM, SCORES = _spectrum(), _scores_of_layer()
