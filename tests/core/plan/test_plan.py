"""A plan as JSON and as a table."""

import json
from typing import Any

import msgspec
import pytest

import rankfold as rf
from rankfold.errors import Infeasible, Refused
from rankfold.plan.plan import Trial


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


def test_plans_from_before_the_report_are_read(plan: rf.Plan) -> None:
    old = json.loads(plan.to_json())
    for name in ("tradeoff", "call"):
        del old[name]
    for layer in old["layers"]:
        del layer["spectra"]
    assert rf.Plan.from_json(json.dumps(old)) == plan


def test_the_table_shows_every_layer_and_the_totals(plan: rf.Plan) -> None:
    text = str(plan)
    for word in ("features.0", "tucker2", "7, 5", "0.1250", "Conv 11→13 3×3", "head", "tied: its"):
        assert word in text
    assert "1 of 2 layers replaced; parameters of the model 1.5k → 900 (60.0%)" in text
    assert "MACs of its layers 90k → 36k (40.0%)" in text


def test_the_table_shows_markup_and_control_characters_as_they_stand() -> None:
    layer = rf.LayerPlan(path="[bold]a\x1b[31m", reason="[/i]\x9b", op="\x07Linear")
    plan = rf.Plan(layers=(layer,), policy="Ranks({'[bold]a[/]': 3})\x1b[0m")
    assert r"3})\x1b[0m: 0 of 1" in repr(plan)
    text = str(plan)
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


ABSURD = {
    "parameters beyond all floats": ("params", [10**400, 1]),
    "negative parameters": ("params", [-3, 1]),
    "negative MACs": ("macs", [5, -1]),
    "MACs beyond all floats": ("macs", [1, 10**309]),
    "a negative rank": ("ranks", [7, -5]),
    "a negative error": ("error", -0.5),
    "a huge error": ("error", 1e305),
    "a negative prediction": ("predicted", -1e-9),
    "a negative measurement": ("measured", -2.0),
    "a negative sensitivity": ("sensitivity", -1.0),
}


@pytest.mark.parametrize(("field", "value"), ABSURD.values(), ids=ABSURD)
def test_values_that_no_layer_has_are_refused_by_the_name_of_the_field(
    plan: rf.Plan, field: str, value: object
) -> None:
    found = json.loads(plan.to_json())
    found["layers"][0][field] = value
    with pytest.raises(rf.RankfoldError, match=f"layer 'features.0': {field} "):
        rf.Plan.from_json(json.dumps(found))


@pytest.mark.parametrize("value", [float("nan"), "0.1", True, float("inf")])
def test_a_plan_made_by_hand_is_checked_too(plan: rf.Plan, value: object) -> None:
    layer = msgspec.structs.replace(plan.layers[0], error=value)
    with pytest.raises(rf.RankfoldError, match=r"layer 'features.0': error "):
        rf.apply(None, msgspec.structs.replace(plan, layers=(layer,)))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e301])
@pytest.mark.parametrize("field", ["loss", "score"])
def test_scores_and_losses_that_are_no_numbers_are_refused(
    plan: rf.Plan, field: str, value: float
) -> None:
    trials = (Trial(share=0.5, score=value, kept=True),)
    changes: dict[str, Any] = {"loss": (0.1, value)} if field == "loss" else {"trials": trials}
    with pytest.raises(rf.RankfoldError, match=field):
        rf.apply(None, msgspec.structs.replace(plan, **changes))


@pytest.mark.parametrize(
    ("field", "value"), [("size", -1), ("size", 10**400), ("latency", -0.1), ("seed", None)]
)
def test_values_that_no_plan_has_are_refused_by_the_name_of_the_field(
    plan: rf.Plan, field: str, value: object
) -> None:
    text = json.dumps({**json.loads(plan.to_json()), field: value})
    with pytest.raises(rf.RankfoldError, match=field):
        rf.Plan.from_json(text)


def test_nothing_in_a_plan_reaches_the_terminal_as_a_command(plan: rf.Plan) -> None:
    evil = "\x1b]0;x\x07\u202e\r\n\x9b31m"
    layer = msgspec.structs.replace(
        plan.layers[0], path=evil, method=evil, op=evil, reason=evil, moments=evil
    )
    text = str(msgspec.structs.replace(plan, layers=(layer,), policy=evil, notes=(evil,)))
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert r"\x1b]0;x\x07\u202e\r\n\x9b31m" in text


@pytest.mark.parametrize("error", [rf.RankfoldError, Infeasible, Refused])
def test_errors_can_be_printed_and_are_cut_where_nobody_reads_on(error: type) -> None:
    begin, end = "layer 'a\x1b[2J': ", "; exclude it\nor not\u202e"
    more = (1.5,) if error is Infeasible else ()
    text = str(error(begin + "x" * 100_000 + end, *more))
    assert len(text) < 5000
    assert text.startswith(r"layer 'a\x1b[2J': x")
    assert text.endswith("; exclude it\nor not\\u202e")
    assert "characters more" in text
