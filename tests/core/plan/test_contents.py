"""A plan in words: cells, totals and a line."""

from __future__ import annotations

import msgspec
from tests.core.report.plans import layer, network

import rankfold as rf
from rankfold.plan.contents import contents, in_notebook, summary
from rankfold.plan.plan import LayerPlan, Plan


def test_errors_and_macs_are_explained() -> None:
    text = contents(network()).totals
    assert "error: ‖W − Ŵ‖ / ‖W‖ of the weight; predicted, measured: ‖y − ŷ‖ / ‖y‖" in text
    assert "products within attention not counted" in text
    assert "error:" not in str(rf.Plan(layers=(rf.LayerPlan(path="a", reason="excluded"),)))


def test_without_inputs_there_are_no_macs() -> None:
    assert "MACs" not in str(rf.Plan(layers=(rf.LayerPlan(path="a", reason="excluded"),)))


def test_a_row_has_what_was_done_to_the_layer() -> None:
    plan = Plan(layers=(layer(0), layer(4, "")))
    table = contents(plan)
    first, second = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert first["method"] == "tucker2"
    assert first["ranks"] == "9, 7"
    assert first["error"] == "0.2000"
    assert (first["predicted"], first["measured"]) == ("0.0200", "0.0300")
    assert first["reason"] == "refitted"
    assert second["layer"] == "(the model)"
    assert (second["method"], second["error"]) == ("–", "")
    assert second["reason"] == "kept by the budget"


def test_columns_without_a_value_are_left_out() -> None:
    columns = contents(Plan(layers=(LayerPlan(path="a", reason="excluded"),))).columns
    assert list(columns) == ["layer", "op", "method", "ranks", "params", "error", "reason"]


def test_the_brief_form_has_shares_and_numbered_notes() -> None:
    table = contents(network(5))
    assert table.brief is not None
    brief = table.brief.brief
    assert brief is not None
    cells = dict(zip(brief.columns, brief.rows[0], strict=True))
    assert cells["params"] == "33.3%"
    assert "1: refitted" in brief.totals.split("\n")
    assert brief.rows[4][-1] == "2"


def test_remarks_are_told_beside_the_reason() -> None:
    told = msgspec.structs.replace(
        layer(0), reason="few rows", moments="diagonal", sensitivity=3.25
    )
    (row,) = contents(Plan(layers=(told,))).rows
    assert row[-1] == "few rows; refitted; moments: diagonal; sensitivity 3.25"


def test_totals_tell_losses_times_trials_and_growth() -> None:
    totals = contents(network()).totals
    for words in (
        "loss on held-out examples 0.31 → 0.33",
        "time of a pass: predicted 61.0%, measured 66.0% of the original's",
        "\ntried a share of 0.200: score 0.71, too low",
        "proven within 0.10% of the best on offer",
    ):
        assert words in totals
    grown = msgspec.structs.replace(layer(0), macs=(5, 7))
    assert "; MACs grow: " in contents(Plan(layers=(grown,))).totals


def test_a_line_says_what_a_plan_does() -> None:
    line = summary(network(5))
    assert line.startswith("Budget(macs=0.5): 4 of 5 layers replaced, parameters ")
    assert ", MACs " in line
    assert summary(Plan(layers=())) == "0 of 0 layers replaced, parameters 0"


def test_a_notebook_is_shown_the_line_and_a_table() -> None:
    shown = in_notebook(network(5), "Plan")
    assert shown is not None
    assert "<summary>Plan: Budget(macs=0.5): 4 of 5 layers replaced" in shown
    assert shown.count("<tr>") >= 6
