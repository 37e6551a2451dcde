"""Extents and costs of products and look-ups with a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import JaxprEqn

from rankfold_jax.jaxpr.parameter_uses import look_up, product
from rankfold_jax.jaxpr.provenance import Provenance

LABEL = Provenance("w", axes=(0, 1, 2))


def equation(function: Callable[..., Any], *shapes: tuple[int, ...]) -> JaxprEqn:
    (eqn,) = jax.make_jaxpr(function)(*(jnp.zeros(s) for s in shapes)).jaxpr.eqns
    return eqn


@pytest.mark.parametrize("side", [0, 1])
def test_axes_of_a_product_are_stacked_or_summed(side: int) -> None:
    numbers: Any = (((2,), (1,)), ((0,), (0,)))  # x (3, 7, 5) by w (3, 5, 11)
    shapes: list[tuple[int, ...]] = [(3, 7, 5), (3, 5, 11)]
    labels = [None, LABEL]
    if side == 0:
        numbers = tuple(pair[::-1] for pair in numbers)
        shapes, labels = shapes[::-1], labels[::-1]
    eqn = equation(lambda a, b: lax.dot_general(a, b, numbers), *shapes)
    use = product(eqn, labels, 1)
    assert use is not None
    assert (use.extent, use.macs) == ((7,), 3 * 7 * 5 * 11)
    assert (use.stacked, use.summed) == ({0}, {1})
    often = product(eqn, labels, 4)
    assert often is not None
    assert (often.extent, often.macs, often.times) == ((4, 7), 4 * use.macs, 4)


def test_a_slice_of_a_scan_is_used_once_in_each_turn() -> None:
    eqn = equation(lambda x, w: x @ w, (2, 5), (5, 7))
    label = Provenance("w", slices=4, axes=(1, 2), taken=(0,))
    use = product(eqn, [None, label], 4)
    assert use is not None
    assert (use.extent, use.macs, use.times) == ((2,), 4 * 2 * 5 * 7, 1)
    assert (use.stacked, use.summed) == ({0}, {1})


@pytest.mark.parametrize("dilated", [1, 2])
def test_a_convolution_costs_by_outputs_and_a_transposed_one_by_inputs(dilated: int) -> None:
    eqn = equation(
        lambda x, w: lax.conv_general_dilated(
            x,
            w,
            (1,),
            ((0, 0),),
            lhs_dilation=(dilated,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=2,
        ),
        (2, 11, 6),
        (3, 3, 8),
    )
    use = product(eqn, [None, LABEL], 1)
    assert use is not None
    assert use.extent == (2, 11)
    positions = 2 * 11 if dilated > 1 else 2 * 9
    assert use.macs == positions * 3 * 3 * 8


def test_other_equations_are_no_products_with_a_parameter() -> None:
    eqn = equation(lambda x, w: x @ w, (2, 5), (5, 7))
    assert product(eqn, [LABEL, LABEL], 1) is None
    assert product(eqn, [None, None], 1) is None
    assert product(equation(lambda x: x.T, (2, 5)), [LABEL], 1) is None
    conv = equation(lambda x, w: lax.conv(x, w, (1,), "VALID"), (2, 6, 11), (8, 6, 3))
    assert product(conv, [LABEL, None], 1) is None


def test_a_look_up_has_the_extent_of_its_indices_and_no_cost() -> None:
    closed = jax.make_jaxpr(lambda t, i: t.at[i].get(mode="clip"))(
        np.zeros((11, 4)), np.zeros((3, 2), int)
    )
    eqn = next(e for e in closed.jaxpr.eqns if e.primitive.name == "gather")
    label = Provenance("w")
    once, often = look_up(eqn, [label, None], 1), look_up(eqn, [label, None], 5)
    assert once is not None
    assert often is not None
    assert (once.extent, once.macs, once.output) == ((3, 2), 0, (3, 2, 4))
    assert often.extent == (5, 3, 2)
    assert look_up(eqn, [None, label], 1) is None
