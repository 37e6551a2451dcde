"""The data of the charts are those of the plan."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
import pytest
from tests.core.report.plans import network, sensitivities

import rankfold as rf
from rankfold.report.charts import Chart, charts
from rankfold.report.rows import rows_of


def drawn(plan: rf.Plan) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts(plan, rows_of(plan.layers))}


def values(chart: Chart, layer: int = 0) -> list[dict[str, Any]]:
    return chart.spec["layer"][layer].get("data", chart.spec.get("data"))["values"]


def test_the_pieces_of_each_bar_add_up_to_the_model() -> None:
    plan = network()
    bars: dict[str, float] = defaultdict(float)
    for piece in values(drawn(plan)["costs"]):
        bars[piece["bar"].rsplit(" ", 2)[0]] += piece["share"]
    before, after = plan.model_params
    assert plan.macs is not None
    assert bars == pytest.approx(
        {
            "parameters, before": 1.0,
            "parameters, after": after / before,
            "multiply-accumulates, before": 1.0,
            "multiply-accumulates, after": plan.macs[1] / plan.macs[0],
        },
        abs=1e-5,
    )


def test_what_is_in_no_layer_is_a_piece() -> None:
    rest = [piece for piece in values(drawn(network())["costs"]) if piece["row"] == 21]
    before, _ = network().model_params
    assert [piece["layer"] for piece in rest] == ["everything else"] * 2
    assert [piece["share"] for piece in rest] == pytest.approx([999 / before] * 2, abs=1e-6)


def test_the_curve_has_the_points_of_the_plan() -> None:
    plan = network()
    assert plan.tradeoff is not None
    chart = drawn(plan)["curve"]
    points = [(point["share"], point["loss"]) for point in values(chart)]
    assert points == list(plan.tradeoff.points[1:])  # the original has no place on a logarithm
    assert [(p["share"], p["loss"]) for p in values(chart, 1)] == [plan.tradeoff.plan]


def test_trials_are_shown_with_the_original_as_a_line() -> None:
    chart = drawn(network())["trials"]
    assert [(p["share"], p["score"], p["state"]) for p in values(chart, 2)] == [
        (0.2, 0.71, "too low"),
        (0.5, 0.92, "good enough"),
    ]
    assert values(chart)[0]["score"] == 0.93
    assert "The cheapest that is good enough has 50 % of the cost" in chart.words


def test_each_replaced_layer_is_a_dot() -> None:
    plan = network()
    points = values(drawn(plan)["payoff"])
    assert [point["layer"] for point in points] == [layer.path for layer in plan.replaced]
    assert [point["error"] for point in points] == [layer.measured for layer in plan.replaced]


def test_what_is_not_there_is_not_drawn() -> None:
    plan = msgspec.structs.replace(network(2), tradeoff=None, trials=())
    assert list(drawn(plan)) == ["costs"]
    assert list(drawn(rf.Plan(layers=()))) == ["costs"]


def test_scores_of_single_layers_are_shown_with_the_original() -> None:
    plan = network()
    rows = rows_of(plan.layers, sensitivities(plan))
    chart = {chart.name: chart for chart in charts(plan, rows)}["sensitivity"]
    measured = sensitivities(plan)
    assert values(chart)[0]["score"] == measured.original
    points = [(point["layer"], point["score"]) for point in values(chart, 2)]
    assert points == [(score.path, score.score) for score in measured]
    assert [point["layer"] for point in values(chart, 3)] == list(measured.most_sensitive()[:2])
    assert rows[3].scores == ((1.0, 0.93), *((s.share, s.score) for s in measured.of(rows[3].name)))
