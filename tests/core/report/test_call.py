from __future__ import annotations

from typing import Any

import msgspec
from tests.core.report.plans import network

from rankfold.plan.plan import LayerPlan, Plan
from rankfold.report.call import call_of


def shown(*, informed: bool = True, **fields: Any) -> tuple[str, str]:
    return call_of(msgspec.structs.replace(network(), **fields), informed=informed)


def test_the_data_of_a_call_have_names_that_are_explained() -> None:
    code, names = shown(call="rf.compress(model, rf.VBMF())")
    assert code == (
        "import rankfold as rf\n\n"
        "small = rf.compress(model, rf.VBMF(), inputs=x, calibration=batches)"
    )
    assert names == "x is your example input and batches are your calibration data"


def test_data_that_there_were_not_are_not_in_the_call() -> None:
    bare = Plan(layers=(LayerPlan(path="a", reason="tied"),), call="rf.compress(model, rf.VBMF())")
    code, names = call_of(bare, informed=False)
    assert code.endswith("\nsmall = rf.compress(model, rf.VBMF())")
    assert names == ""


def test_the_call_of_a_checkpoint_has_data_of_its_own() -> None:
    call = "rf.compress_checkpoint(checkpoint, output, rf.Ratio(share=0.5))"
    code, names = shown(call=call)
    assert code.endswith("\nplan = " + call[:-1] + ", inputs=shapes, moments=file)")
    assert "shapes are those of the inputs of layers" in names


def test_a_function_in_the_call_has_a_name_that_can_be_typed() -> None:
    call = "rf.compress(model, rf.Budget(drop=0.5, evaluate=Run.<locals>.<lambda>), seed=3)"
    code, names = shown(call=call)
    assert "rf.Budget(drop=0.5, evaluate=evaluate), seed=3" in code
    assert names.endswith("evaluate gives the score of a model")


def test_a_plan_without_a_call_has_none() -> None:
    assert shown(call="") == ("", "")


def test_control_characters_of_a_call_are_told() -> None:
    assert "\x1b" not in shown(call="rf.compress(model, '\x1b[31m')")[0]
