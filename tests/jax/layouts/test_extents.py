"""Extents of a layer's inputs, and uses of its kernel that are somebody else's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rankfold.errors import Refused
from rankfold_jax.jaxpr.dataflow import Dataflow, Read
from rankfold_jax.jaxpr.parameter_uses import ParameterUse
from rankfold_jax.layouts.dense import DenseForm, EmbedForm
from rankfold_jax.layouts.extents import extents_of, seen_axes
from rankfold_jax.layouts.stacks import ObservedAxes

USE = ParameterUse("a", "dot_general", (5, 7), (3, 5), (3, 7), (3,), 105)
FORM = DenseForm((5,), (7,))


def extents(flow: Dataflow, form: Any = FORM, calls: int = 1, multiplies: bool = False) -> Any:
    return extents_of("a", form, flow, calls=calls, has_own_product=multiplies)


def test_each_use_has_an_extent_and_those_of_other_layers_have_none() -> None:
    other = replace(USE, extent=(4,))
    flow = Dataflow([USE, other, replace(USE, leaf="b")])
    assert extents(flow, calls=2) == ((3,), (4,))


def test_more_uses_than_calls_are_somebody_elses() -> None:
    with pytest.raises(Refused, match="also used by something else"):
        extents(Dataflow([USE, USE]))


def test_a_use_of_another_kind_or_a_read_is_refused_unless_the_layer_multiplies_itself() -> None:
    foreign = Dataflow([replace(USE, primitive="gather")])
    read = Dataflow([USE], [Read("b", "exp"), Read("a", "mul")])
    with pytest.raises(Refused, match="by a gather of another kind"):
        extents(foreign)
    with pytest.raises(Refused, match="goes into a mul before"):
        extents(read)
    assert extents(foreign, multiplies=True) == ()
    assert extents(read, multiplies=True) == ((3,),)


def test_a_product_with_a_table_is_no_look_up_and_no_reason() -> None:
    look_up = replace(USE, primitive="gather")
    assert extents(Dataflow([USE, look_up]), EmbedForm(5, 7), calls=2) == ((3,),)


def test_axes_that_two_uses_disagree_on_are_left_open() -> None:
    first = replace(USE, stacked=frozenset({0, 1}), summed=frozenset({2}))
    second = replace(USE, stacked=frozenset({0}), summed=frozenset({1, 3}))
    observed = seen_axes("a", Dataflow([first, second]))
    assert observed == ObservedAxes(frozenset({0}), frozenset({2, 3}))
    assert seen_axes("b", Dataflow([first])) == ObservedAxes()
