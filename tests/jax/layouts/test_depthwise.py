"""Depthwise convolution by shifts, against that of lax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rankfold import RankfoldError
from rankfold_jax.layouts.depthwise import depthwise_conv

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "one axis": (
        (2, 11, 5),
        (3, 1, 5),
        {
            "window_strides": (1,),
            "padding": "VALID",
            "dimension_numbers": ("NWC", "WIO", "NWC"),
        },
    ),
    "two axes": (
        (2, 11, 9, 5),
        (3, 2, 1, 5),
        {
            "window_strides": (2, 1),
            "padding": ((1, 3), (0, 2)),
            "rhs_dilation": (1, 3),
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        },
    ),
    "channels first": (
        (2, 5, 11, 9),
        (5, 1, 3, 2),
        {
            "window_strides": (1, 2),
            "padding": "SAME",
            "dimension_numbers": ("NCHW", "OIHW", "NHWC"),
            "preferred_element_type": jnp.float64,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_sum_over_taps_is_the_convolution(case: str) -> None:
    inputs, kernel, options = CASES[case]
    x, w = normal(*inputs), normal(*kernel)
    with jax.enable_x64(True):
        options = {**options, "feature_group_count": 5}
        expected = lax.conv_general_dilated(x, w, **options)
        y = depthwise_conv(x, w, **options)
        program = str(jax.make_jaxpr(lambda x, w: depthwise_conv(x, w, **options))(x, w))
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert "platform_index" in program  # it is not left to lax


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 1, 10), {}),  # two outputs a channel
        ((3, 1, 5), {"lhs_dilation": (2,), "padding": ((0, 0),)}),
    ],
)
def test_what_is_no_plain_depthwise_convolution_is_left_to_lax(
    kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    options = {
        "window_strides": (1,),
        "padding": "VALID",
        "dimension_numbers": ("NWC", "WIO", "NWC"),
        "feature_group_count": 5,
        **options,
    }
    (eqn,) = jax.make_jaxpr(lambda x, w: depthwise_conv(x, w, **options))(
        normal(2, 11, 5), normal(*kernel)
    ).jaxpr.eqns
    assert eqn.primitive.name == "conv_general_dilated"


def test_a_padding_that_crops_is_an_error_with_the_remedy() -> None:
    with pytest.raises(RankfoldError, match="use at least 0"):
        depthwise_conv(
            normal(2, 11, 5),
            normal(3, 1, 5),
            (1,),
            ((-1, 0),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=5,
        )
