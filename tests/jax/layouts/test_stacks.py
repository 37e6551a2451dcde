"""Axes along which an array is a stack of layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankfold.errors import Refused
from rankfold_jax.layouts.stacks import ObservedAxes, StackedAxes, find_stacks


@pytest.mark.parametrize("axes", [(), (0,), (1,), (-1,), (0, 2), (2, 0)])
def test_the_axes_go_to_the_front_and_back(axes: tuple[int, ...]) -> None:
    array = np.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    stack = StackedAxes(axes, tuple(array.shape[axis] for axis in axes))
    front = stack.to_front(array)
    rest = np.delete(array.shape, axes) if axes else array.shape
    assert front.shape == (stack.count, *rest)
    np.testing.assert_array_equal(stack.back(front), array)
    if axes:
        first = [slice(None)] * 4
        for axis in axes:
            first[axis] = 0  # type: ignore[call-overload]
        np.testing.assert_array_equal(front[0], array[tuple(first)])


def test_roles_are_those_of_the_axes_in_their_places() -> None:
    assert StackedAxes((1,), (3,)).roles(("in0", "out0")) == ("in0", "stack0", "out0")
    assert StackedAxes((-1,), (3,)).roles(("in0", "out0")) == ("in0", "out0", "stack0")
    roles = StackedAxes((2, 0), (3, 4)).roles(("in0", "out0"))
    assert roles == ("stack1", "in0", "stack0", "out0")


def stacks(kernel: Any, bias: Any = None, seen: ObservedAxes | None = None) -> Any:
    return find_stacks(kernel, (5, 7), bias, (7,), seen or ObservedAxes())


def test_one_layer_is_no_stack_and_a_stack_is_told_by_its_shape() -> None:
    assert stacks((5, 7), (7,)) == (StackedAxes(), StackedAxes())
    assert stacks((5, 3, 7), (3, 7)) == (StackedAxes((1,), (3,)), StackedAxes((0,), (3,)))
    assert stacks((5, 7, 3)) == (StackedAxes((-1,), (3,)), StackedAxes((), (3,)))
    with pytest.raises(Refused, match=r"shape \(4, 5\), which is not a stack of \(5, 7\)"):
        stacks((4, 5))
    with pytest.raises(Refused, match="not a stack"):
        stacks((3, 5, 7), (4, 7))


def test_of_several_ways_a_trace_or_the_bias_leaves_one() -> None:
    with pytest.raises(Refused, match=r"more than one possible axis; give inputs="):
        stacks((5, 5, 7))
    second_axis = frozenset({1})
    for seen, axis in ((ObservedAxes(second_axis), 1), (ObservedAxes(frozenset(), second_axis), 0)):
        assert stacks((5, 5, 7), seen=seen)[0] == StackedAxes((axis,), (5,))
    square = find_stacks((2, 3, 3), (2, 3), (3, 4), (4,), ObservedAxes(frozenset({2})))
    assert square == (StackedAxes((-1,), (3,)), StackedAxes((0,), (3,)))
