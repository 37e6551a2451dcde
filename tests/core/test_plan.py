"""A plan as JSON and as a table."""

import json

import pytest

import rankfold as rf


@pytest.fixture
def plan() -> rf.Plan:
    layers = (
        rf.LayerPlan(
            path="features.0",
            method="tucker2",
            ranks=(7, 5),
            error=0.125,
            params=(1000, 400),
            macs=(90000, 36000),
            op="Conv 11→13 3×3",
        ),
        rf.LayerPlan(path="head", reason="tied: its weight is also 'embed.weight'", op="Linear"),
    )
    return rf.Plan(layers=layers, policy="VBMF()", size=1500, seed=3, placement="classical")


def test_json_goes_both_ways(plan: rf.Plan) -> None:
    assert rf.Plan.from_json(plan.to_json()) == plan


def test_the_table_shows_every_layer_and_the_totals(plan: rf.Plan) -> None:
    text = str(plan)
    for word in ("features.0", "tucker2", "7, 5", "0.1250", "Conv 11→13 3×3", "head", "tied: its"):
        assert word in text
    assert "1 of 2 layers replaced; parameters of the model 1.5k → 900 (60.0%)" in text
    assert "MACs of its layers 90k → 36k (40.0%)" in text


def test_without_inputs_there_are_no_macs() -> None:
    assert "MACs" not in str(rf.Plan(layers=(rf.LayerPlan(path="a", reason="excluded"),)))


def test_the_table_shows_markup_and_control_characters_as_they_stand() -> None:
    layer = rf.LayerPlan(path="[bold]a\x1b[31m", reason="[/i]\x9b", op="\x07Linear")
    text = str(rf.Plan(layers=(layer,), policy="Ranks({'[bold]a[/]': 3})\x1b[0m"))
    for word in (r"[bold]a\x1b[31m", r"[/i]\x9b", r"\x07Linear", r"'[bold]a[/]': 3})\x1b[0m"):
        assert word in text


def test_layers_are_found_by_path(plan: rf.Plan) -> None:
    assert plan["head"].method is None
    with pytest.raises(KeyError):
        plan["tail"]


def changed(plan: rf.Plan, **fields: object) -> str:
    return json.dumps({**json.loads(plan.to_json()), **fields})


BAD = {
    "no JSON": (lambda plan: "not json", "not a rankfold plan"),
    "cut": (lambda plan: plan.to_json()[:-20], "not a rankfold plan"),
    "other JSON": (lambda plan: "[1, 2]", "not a rankfold plan"),
    "unknown field": (lambda plan: changed(plan, colour="red"), "colour"),
    "wrong type": (lambda plan: changed(plan, seed="three"), "seed"),
    "version": (lambda plan: changed(plan, version=99), "version 99"),
    "placement": (lambda plan: changed(plan, placement="left"), "placement"),
    "twice": (
        lambda plan: changed(plan, layers=[{"path": "a"}, {"path": "a"}]),
        "layer 'a' stands twice",
    ),
    "no ranks": (
        lambda plan: changed(plan, layers=[{"path": "a", "method": "svd"}]),
        "a method needs ranks",
    ),
    "deep": (lambda plan: "[" * 100000, "not a rankfold plan"),
    "bytes": (lambda plan: b"\xff\xfe\x00", "not a rankfold plan"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_plans_are_refused(plan: rf.Plan, case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(rf.RankfoldError, match=message):
        rf.Plan.from_json(make(plan))
