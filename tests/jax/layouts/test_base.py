"""What layouts of layers have in common."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.errors import Refused
from rankfold.ops import Conv, Linear
from rankfold_jax.layouts.base import contiguous, keep, linears, matrices


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("in0", [True, False, False]),
        ("out1", [False, False, True]),
        ("k0", [True, True, True]),
        ("group0", [True, True, True]),
    ],
)
def test_only_the_ends_of_a_chain_have_axes_of_the_layers_channels(
    role: str, expected: list[bool]
) -> None:
    ends = [(True, False), (False, False), (False, True)]
    assert [keep(role, first, last) for first, last in ends] == expected
    assert keep(role, True, True)  # the layer itself


def test_groups_are_matrices_that_inputs_are_multiplied_by_from_the_left() -> None:
    weight = np.arange(2 * 3 * 5.0).reshape(6, 5)
    blocks = matrices(Linear(weight, groups=2), 2)
    assert blocks.shape == (2, 5, 3)
    np.testing.assert_array_equal(blocks[1], weight[3:].T)
    with pytest.raises(Refused, match="2 groups in place of 3"):
        matrices(Linear(weight, groups=2), 3)


def test_a_chain_of_other_layers_is_refused_by_name() -> None:
    linear = Linear(np.ones((3, 5)))
    assert linears((linear, linear)) == (linear, linear)
    with pytest.raises(Refused, match="no Conv in place of a fully connected layer"):
        linears((linear, Conv(np.ones((3, 3, 1)))))


def test_copies_share_nothing_and_are_in_c_order() -> None:
    array = np.arange(6.0).reshape(2, 3)
    copied = contiguous(array.T)
    assert copied.flags.c_contiguous
    assert not np.shares_memory(copied, array)
