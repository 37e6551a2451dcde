from __future__ import annotations

import numpy as np
import pytest
import tensorly as tl

import rankfold as rf
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.stages import (
    along,
    cast,
    channel_unfoldings,
    check_ranks,
    place_scale,
    pointwise,
    refilled,
    trivial,
)
from rankfold.errors import RankfoldError
from rankfold.ops import Conv, ConvTranspose, Linear

OP = Conv(np.ones((6, 4, 3, 5)), stride=(2, 3), padding=((1, 0), (2, 4)), dilation=(2, 1), groups=2)


def test_a_pointwise_stage_has_the_groups_of_its_factors_and_no_geometry(
    rng: np.random.Generator,
) -> None:
    weight = rng.standard_normal((2, 7, 3))
    stage = pointwise(OP, weight, np.ones(14))
    assert (stage.groups, stage.stride, stage.padding) == (2, (1, 1), ((0, 0), (0, 0)))
    assert np.array_equal(stage.weight[:, :, 0, 0], weight.reshape(14, 3))


def test_a_stage_has_the_geometry_of_its_axes_alone() -> None:
    stage = along(OP, (1,), np.ones((8, 4, 1, 5)), 2)
    assert stage.stride == (1, 3)
    assert stage.padding == ((0, 0), (2, 4))
    assert stage.dilation == (1, 1)
    transposed = ConvTranspose(np.ones((6, 4, 3, 5)), stride=2, output_padding=1)
    assert along(transposed, (0,), np.ones((6, 4, 3, 1)), 1).output_padding == (1, 0)  # type: ignore[union-attr]  # of its class
    same = Conv(np.ones((6, 4, 3, 5)), padding="same")
    assert along(same, (0,), np.ones((6, 4, 3, 1)), 1).padding == "same"


@pytest.mark.parametrize(
    ("op", "nothing"),
    [
        (Conv(np.ones((6, 4, 1, 5))), True),
        (Conv(np.ones((6, 4, 1, 5)), padding="same"), True),
        (Conv(np.ones((6, 4, 1, 5)), stride=(2, 1)), False),
        (Conv(np.ones((6, 4, 1, 5)), padding=((0, 1), (0, 0))), False),
        (Conv(np.ones((6, 4, 2, 5))), False),
        (ConvTranspose(np.ones((6, 4, 1, 5)), output_padding=(1, 0)), False),
    ],
)
def test_an_axis_is_trivial_where_nothing_happens_along_it(
    op: Conv | ConvTranspose, nothing: bool
) -> None:
    assert trivial(op, 0) is nothing


@pytest.mark.parametrize("shape", [(7, 11, 1, 1), (11, 7, 1, 1), (5, 3, 2, 3), (23, 3, 2, 1)])
def test_unfoldings_have_the_singular_values_of_the_channel_modes(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    weight = rng.standard_normal(shape)
    for mode, unfolding in enumerate(channel_unfoldings(Spectrum(Conv(weight)))):
        matrix = tl.unfold(weight, mode)
        assert unfolding.sides == matrix.shape
        assert unfolding.channels == shape[mode]
        expected = np.linalg.svd(matrix, compute_uv=False) ** 2
        np.testing.assert_allclose(unfolding.values[0] * unfolding.scale**2, expected, atol=1e-9)


@pytest.mark.parametrize("placement", ["balanced", "classical"])
def test_the_scale_is_spread_over_two_factors(
    placement: rf.Placement, rng: np.random.Generator
) -> None:
    first, last = rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 5, 3))
    first[1, 2] = 0.0
    placed_first, placed_last = place_scale(first, last, 4.0, placement)
    np.testing.assert_allclose(placed_last @ placed_first, 4.0 * last @ first, atol=1e-12)
    norms = np.linalg.norm(placed_first, axis=2), np.linalg.norm(placed_last, axis=1)
    np.testing.assert_allclose(norms[1], norms[0] if placement == "balanced" else norms[0] > 0)


def test_a_chain_beyond_the_range_of_the_dtype_is_an_error() -> None:
    op = Linear(np.ones((3, 4), dtype=np.float16))
    with pytest.raises(RankfoldError, match="exceeds the range of float16; use the placement"):
        cast((Linear(np.full((2, 4), 1e6)), Linear(np.ones((3, 2)))), op)


def test_a_cast_chain_has_the_dtype_of_the_layer_and_a_bias_of_its_own() -> None:
    bias = np.ones(3, dtype=np.float32)
    op = Linear(np.ones((3, 4), dtype=np.float32), bias)
    first, last = cast((Linear(np.ones((2, 4))), Linear(np.ones((3, 2)), bias)), op)
    assert first.weight.dtype == last.weight.dtype == np.float32
    assert last.bias is not None
    assert not np.shares_memory(last.bias, bias)


def test_a_refilled_stage_keeps_shape_and_dtype(rng: np.random.Generator) -> None:
    values = rng.standard_normal((4, 6)).T
    stage = refilled(Conv(np.ones((6, 4, 1), dtype=np.float32)), values)
    assert stage.weight.dtype == np.float32
    assert stage.weight.flags.c_contiguous
    np.testing.assert_allclose(stage.weight[:, :, 0], values, rtol=1e-6)


def test_ranks_are_returned_as_ints() -> None:
    ranks = check_ranks("m", OP, (np.int64(3), 2), (3, 3), ("a", "b"))  # type: ignore[arg-type]  # of NumPy
    assert ranks == (3, 2)
    assert all(type(rank) is int for rank in ranks)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((4, 1), "m: rank 4 exceeds 3 outputs; use at most 3"),
        ((1, 0), "m: rank 0; use at least 1"),
        ((True, 1), "m: rank True is not an int"),
        ((1,), r"m: 1 ranks \(1,\); Conv takes 2"),
    ],
)
def test_ranks_that_there_are_not_are_an_error(ranks: tuple[int, ...], message: str) -> None:
    with pytest.raises(RankfoldError, match=message):
        check_ranks("m", OP, ranks, (3, 2), ("outputs", "inputs"))
