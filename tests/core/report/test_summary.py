"""The first lines of the page: true numbers, and the layers that deserve a look."""

from __future__ import annotations

import msgspec
import pytest
from tests.core.report.plans import network

import rankfold as rf
from rankfold.report.rows import rows_of
from rankfold.report.summary import figures, headline, hints


def shown(plan: rf.Plan) -> dict[str, str]:
    rows = rows_of(plan.layers)
    return {figure.name: f"{figure.value}; {figure.detail}" for figure in figures(plan, rows)}


def test_the_headline_counts() -> None:
    plan = network(10)
    before, after = plan.model_params
    assert headline(plan).startswith("8 of 10 layers are replaced")
    assert f"{100 * after / before:.0f} % of its parameters" in headline(plan)


def test_a_plan_that_replaces_nothing_says_so() -> None:
    plan = rf.Plan(layers=(rf.LayerPlan(path="a", reason="tied"),))
    assert headline(plan) == "None of the 1 layers is replaced: the model stays as it is."


def test_numbers_are_measured_predicted_or_not_known() -> None:
    plan = network()
    assert shown(plan)["Time of a pass"] == "66 %; measured, of the original's; predicted 61 %"
    assert shown(plan)["Loss on held-out examples"].startswith("0.33; the original has 0.31")
    predicted = msgspec.structs.replace(plan, latency=None)
    assert shown(predicted)["Time of a pass"].startswith("61 %; predicted")
    plain = rf.Plan(layers=plan.layers)
    assert shown(plain)["Time of a pass"].startswith("not measured")
    assert shown(plain)["Loss on held-out examples"].startswith("not measured")


def test_a_distance_from_the_original_is_no_loss() -> None:
    plan = msgspec.structs.replace(network(), loss=(0.0, 0.04))
    assert shown(plan)["Distance on held-out examples"].startswith("0.04")


def test_the_worst_layers_come_first() -> None:
    plan = network(15)
    worst = max(plan.replaced, key=lambda layer: layer.measured or 0.0)
    first = hints(plan, rows_of(plan.layers))[0]
    assert first.rows[0].name == worst.path
    errors = [row.measured for row in first.rows]
    assert errors == sorted(errors, reverse=True)


def test_a_layer_that_measures_far_above_its_prediction_is_named() -> None:
    plan = network(4)
    bad = msgspec.structs.replace(plan.layers[2], predicted=0.01, measured=0.05)
    plan = msgspec.structs.replace(plan, layers=(*plan.layers[:2], bad, plan.layers[3]))
    named = [hint for hint in hints(plan, rows_of(plan.layers)) if "2 times" in hint.text]
    assert [row.name for row in named[0].rows] == [bad.path]


def test_reasons_and_notes_are_told() -> None:
    texts = [hint.text for hint in hints(network(), rows_of(network().layers))]
    assert "Left alone, 4 of 4 layers: kept by the budget" in texts
    assert "The policy notes: proven within 0.10% of the best on offer" in texts


@pytest.mark.parametrize("layers", [0, 1])
def test_tiny_plans_have_a_summary(layers: int) -> None:
    plan = rf.Plan(layers=network(5).layers[:layers])
    assert headline(plan)
    assert figures(plan, rows_of(plan.layers))
    hints(plan, rows_of(plan.layers))
