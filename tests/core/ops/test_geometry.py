from __future__ import annotations

import numpy as np
import pytest

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.ops import (
    output_extent,
)
from rankfold.ops.geometry import Geometry, is_int, padding, per_axis


def test_geometry_may_be_written_short() -> None:
    short = rf.Conv(np.ones((3, 4, 5, 2)), stride=2, padding=(1, 0), dilation=[3, 1])
    assert short.stride == (2, 2)
    assert short.padding == ((1, 1), (0, 0))
    assert short.dilation == (3, 1)
    assert rf.Conv(np.ones((3, 4, 5)), padding="valid").padding == ((0, 0),)


def test_strided_same_padding_divides_the_size(rng: np.random.Generator) -> None:
    for size in range(5, 12):
        for stride in (1, 2, 3):
            op = rf.Conv(rng.standard_normal((2, 3, 4)), stride=stride, padding="same")
            assert output_extent(op, (1, size)) == (1, -(-size // stride))


def test_the_reach_is_that_of_the_dilated_kernel() -> None:
    geometry = Geometry((5, 3, 1), (1, 1, 1), "same", (1, 4, 9), (0, 0, 0))
    assert geometry.axes == 3
    assert geometry.reach == (5, 9, 1)


@pytest.mark.parametrize("size", range(4, 12))
def test_same_padding_puts_the_odd_element_at_the_end_and_same_lower_before(size: int) -> None:
    def pads(kind: str) -> tuple[int, int]:
        return Geometry((4,), (3,), padding("op", kind, 1), (1,), (0,)).pads((size,))[0]

    low, high = pads("same")
    assert pads("same_lower") == (high, low)
    assert 0 <= high - low <= 1
    # The last window ends within the padded input, and no element more is appended.
    windows = -(-size // 3)
    assert low + high == max(0, 3 * (windows - 1) + 4 - size)


@pytest.mark.parametrize("value", [3, np.int64(3), (3, 3), [3, np.int32(3)]])
def test_one_int_stands_for_each_axis(value: object) -> None:
    values = per_axis("op", "stride", value, 2, 1)
    assert values == (3, 3)
    assert all(type(v) is int for v in values)


@pytest.mark.parametrize("value", [0, True, 1.0, "2", (1,), (1, 0), None])
def test_what_is_no_int_from_the_least_on_is_named(value: object) -> None:
    with pytest.raises(RankfoldError, match=r"op: stride .*; use an int or 2 ints from 1 on"):
        per_axis("op", "stride", value, 2, 1)


def test_a_padding_is_written_in_pairs() -> None:
    assert padding("op", 2, 2) == ((2, 2), (2, 2))
    assert padding("op", [1, (0, 3)], 2) == ((1, 1), (0, 3))
    assert padding("op", "valid", 2) == ((0, 0), (0, 0))
    for value in (-1, (1, -1), ((1, 2, 3), 0), "full", (1, 2, 3), True):
        with pytest.raises(RankfoldError, match=r"op: padding .*; use an int, 2 ints or"):
            padding("op", value, 2)


def test_a_truth_value_is_no_int() -> None:
    assert is_int(np.uint8(3))
    assert not is_int(True)
    assert not is_int(3.0)
