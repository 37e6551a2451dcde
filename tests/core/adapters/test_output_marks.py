"""Marks of calls of layers, through what is done with their outputs."""

from __future__ import annotations

import pytest

from rankfold.adapters.output_marks import Activation, Calls, beside, is_internal

OPTIONS = {"by_element": True, "weights": False, "adds": False}


def test_two_heads_that_are_joined_are_both_outputs() -> None:
    calls = Calls()
    body = calls.mark("body", [], size=8)
    a, b = (calls.mark(name, [body], size=8) for name in "ab")
    assert calls.layers([calls.joined([a, b], 8, **OPTIONS)]) == {"a", "b"}
    assert calls.layers([beside([a, b])]) == {"a", "b"}
    assert calls.unused() == {"a", "b"}


def test_links_of_a_residual_chain_are_none_but_steps_of_one_layer_are() -> None:
    calls = Calls()
    first = calls.mark("a", [], size=8)
    chain = calls.joined([first, calls.mark("b", [first], size=8)], 8, **OPTIONS)
    steps = calls.joined([first, calls.mark("a", [first], size=8)], 8, **OPTIONS)
    assert calls.layers([chain]) == set()
    assert calls.layers([steps]) == {"a"}
    assert chain.ancestors == 0b11


@pytest.mark.parametrize(
    ("size", "options", "marked"),
    [
        (8, {}, True),
        (8, {"weights": True}, True),
        (8, {"weights": True, "by_element": False}, False),
        (16, {"weights": True}, False),
        (16, {"weights": True, "adds": True}, True),
    ],
)
def test_weights_by_element_leave_the_mark(
    size: int, options: dict[str, bool], marked: bool
) -> None:
    calls = Calls()
    output = calls.mark("a", [], size=8)
    joined = calls.joined([output], size, **(OPTIONS | options))
    assert calls.layers([joined]) == ({"a"} if marked else set())


def test_what_is_mixed_and_rows_of_tables_mix_what_they_meet() -> None:
    calls = Calls()
    a, rows = calls.mark("a", [], size=8), calls.mark("table", [], size=8, looks_up=True)
    for other in (Activation(), rows):
        assert calls.layers([calls.joined([a, other], 8, **OPTIONS)]) == set()


def test_a_place_that_is_met_again_is_one_call() -> None:
    calls = Calls()
    first = calls.mark("a", [], size=8, location="loop")
    again = calls.mark("a", [first], size=8, location="loop")
    assert first.calls == again.calls
    assert calls.mark("a", [], size=8).calls != first.calls


def test_caches_are_no_outputs() -> None:
    assert is_internal("past_key_values")
    assert not is_internal("logits")
    assert Calls().unused() is None
