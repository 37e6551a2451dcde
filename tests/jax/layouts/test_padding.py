"""Paddings of Flax as geometry of an op, and back."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from tests.jax.layouts.layers import initial, rngs

import rankfold as rf
from rankfold.errors import Refused
from rankfold_jax.layouts.padding import (
    lax_padding,
    padding_of,
    pads,
    per_axis,
    reach_of,
    transposed_padding,
)


@pytest.mark.parametrize("padding", ["same", "SAME_LOWER", "valid"])
def test_paddings_that_only_the_convolution_within_a_transposed_one_knows(padding: str) -> None:
    layer = nnx.ConvTranspose(
        5, 7, (3, 4), padding=padding, kernel_dilation=2, kernel_init=initial, rngs=rngs()
    )
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 5))
    small = rf.compress(layer, rf.Ranks("full"), methods=["tucker2"], inputs=x)
    assert small.plan[""].method == "tucker2"
    np.testing.assert_allclose(small.model(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("padding", ["circular", "reflect", "causal"])
def test_paddings_of_flax_in_another_case_are_none(padding: str) -> None:
    layer = nnx.Conv(5, 7, (3,), padding=padding, kernel_init=initial, rngs=rngs())
    assert rf.plan(layer, rf.Ranks(2))[""].reason == f"padding {padding!r} is unknown"


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("SAME", ("same", "zeros")),
        ("SAME_LOWER", ("same_lower", "zeros")),
        ("VALID", ("valid", "zeros")),
        (((1, 2),), (((1, 2),), "zeros")),
        ("CIRCULAR", (((1, 2),), "circular")),
        ("REFLECT", (((1, 2),), "reflect")),
        ("CAUSAL", (((3, 0),), "zeros")),
    ],
)
def test_a_padding_of_flax_is_one_of_an_op_and_back(padding: Any, expected: Any) -> None:
    assert pads(padding, (4,)) == expected
    op = rf.Conv(np.ones((5, 3, 4)), padding=expected[0], padding_mode=expected[1])
    back = padding_of(op)
    assert back == (((3, 0),) if padding == "CAUSAL" else padding)
    assert pads(back, (4,)) == expected


def test_a_padding_that_flax_has_not_is_refused() -> None:
    with pytest.raises(Refused, match="'CAUSAL' is unknown"):
        pads("CAUSAL", (3, 2))
    op = rf.Conv(np.ones((5, 3, 4)), padding=((2, 2),), padding_mode="reflect")
    with pytest.raises(Refused, match="in mode 'reflect'"):
        padding_of(op)
    assert padding_of(rf.Conv(np.ones((5, 3, 1)), padding_mode="circular")) == "VALID"


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("same", "SAME"),
        ("Valid", "VALID"),
        ("circular", "circular"),
        (2, ((2, 2), (2, 2))),
        ((1, (0, 3)), ((1, 1), (0, 3))),
        ([(1, 2), [3, 4]], ((1, 2), (3, 4))),
    ],
)
def test_paddings_have_one_canonical_form(padding: Any, expected: Any) -> None:
    assert lax_padding(padding, 2) == expected


@pytest.mark.parametrize("padding", [(1, 2, 3), ((1, 2, 3), 1), None, 1.5])
def test_what_is_no_padding_is_named(padding: Any) -> None:
    with pytest.raises(Refused, match="is none of Flax's"):
        lax_padding(padding, 2)


def test_a_transposed_convolution_pads_its_dilated_input() -> None:
    assert transposed_padding("SAME", (3, 4)) == "SAME"
    assert transposed_padding("valid", (3, 4)) == ((0, 0), (0, 0))
    assert transposed_padding("same", (3, 4)) == ((1, 1), (1, 2))
    assert transposed_padding("SAME_LOWER", (3, 4)) == ((1, 1), (2, 1))
    assert transposed_padding(1, (3, 4)) == ((1, 1), (1, 1))


def test_options_are_spread_over_the_axes() -> None:
    assert per_axis(None, 2) == (1, 1)
    assert per_axis(3, 2) == (3, 3)
    assert per_axis([2, 3], 2) == (2, 3)
    assert reach_of((3, 1, 4), (2, 5, 1)) == (5, 1, 4)
