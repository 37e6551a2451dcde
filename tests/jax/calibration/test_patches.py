"""Rows that a kernel meets at an equation, against the equation itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import JaxprEqn

from rankfold_jax.calibration.patches import look_up_view, matrix_view, window_view

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def equation(function: Callable[..., Any], *arguments: Any) -> JaxprEqn:
    (eqn,) = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return eqn


@pytest.mark.parametrize("side", [0, 1])
def test_rows_of_a_product_multiply_to_its_outputs(side: int) -> None:
    # batch axis 1, summed axes 3 and 0, images 2 and positions 5 long
    x, kernel = normal(7, 3, 2, 4, 5), normal(6, 4, 3, 7)
    numbers = (((3, 0), (1, 3)), ((1,), (2,)))
    operands = [x, kernel]
    if side == 0:
        operands, numbers = operands[::-1], tuple(pair[::-1] for pair in numbers)  # type: ignore[assignment]
    eqn = equation(lambda a, b: lax.dot_general(a, b, numbers), *operands)
    y = lax.dot_general(*operands, numbers)
    view = matrix_view(eqn, side)
    assert (view.images, view.positions) == (2, 5)
    rows, outputs = view.rows(x, None), view.outputs(y, None)
    assert rows.shape == (2, 5, 3 * 4 * 7)
    split = np.asarray(rows).reshape(2, 5, 3, 4, 7)
    expected = np.einsum("npbij,oibj->npbo", split, kernel).reshape(2, 5, -1)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    chosen = np.array([[4, 1], [0, 3]])
    np.testing.assert_array_equal(view.rows(x, chosen)[1], rows[1][chosen[1]])
    np.testing.assert_array_equal(view.outputs(y, chosen)[0], outputs[0][chosen[0]])


def test_rows_of_a_convolution_multiply_to_its_outputs() -> None:
    x, kernel = normal(2, 4, 9, 7), normal(4, 3, 2, 6)  # NCHW, and a kernel of IHWO
    options: dict[str, Any] = {
        "window_strides": (2, 1),
        "padding": ((2, -1), (0, 3)),
        "lhs_dilation": (1, 2),
        "rhs_dilation": (2, 1),
        "dimension_numbers": ("NCHW", "IHWO", "NHWC"),
    }
    eqn = equation(lambda a, b: lax.conv_general_dilated(a, b, **options), x, kernel)
    y = lax.conv_general_dilated(x, kernel, **options)
    view = window_view(eqn)
    assert (view.images, view.positions) == (2, y.shape[1] * y.shape[2])
    rows = view.rows(x, None)
    weight = kernel.transpose(3, 0, 1, 2).reshape(6, -1)
    np.testing.assert_allclose(
        view.outputs(y, None), np.asarray(rows) @ weight.T, rtol=1e-4, atol=1e-4
    )
    chosen = np.stack([np.arange(3) * 2, np.arange(3) + 5])
    for image in (0, 1):
        np.testing.assert_array_equal(view.rows(x, chosen)[image], rows[image][chosen[image]])


def test_look_ups_are_rows_of_the_table_wherever_features_lie() -> None:
    table, ids = normal(11, 4), np.array([[3, 0, 10], [5, 5, 1]])

    def look_up(axis: int) -> Callable[..., Any]:
        offset = (0,) if axis == 0 else (2,)
        numbers = lax.GatherDimensionNumbers(offset, (0,), (0,))
        return lambda table, ids: lax.gather(table, ids[..., None], numbers, (1, 4))

    for axis in (0, 2):
        closed = jax.make_jaxpr(look_up(axis))(table, ids)
        eqn = next(e for e in closed.jaxpr.eqns if e.primitive.name == "gather")
        view = look_up_view(eqn)
        assert view is not None
        assert (view.images, view.positions) == (2, 3)
        np.testing.assert_array_equal(view.outputs(look_up(axis)(table, ids), None), table[ids])
        np.testing.assert_array_equal(view.rows(jnp.asarray(ids), None), ids.reshape(-1))


def test_slices_of_rows_are_no_look_up() -> None:
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))
    eqn = equation(
        lambda table, ids: lax.gather(table, ids, numbers, (1, 2)), normal(11, 4), np.array([[3]])
    )
    assert look_up_view(eqn) is None
