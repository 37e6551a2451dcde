"""Sums of products over rows."""

from __future__ import annotations

import pytest
import torch

from rankfold.calibration.array_store import ArrayStore
from rankfold_torch.calibration.sums import SquareSum, all_finite, product, squared_norm


@pytest.mark.parametrize("width", [3, 1025, 1200])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_square_is_the_product_of_rows_with_themselves(width: int, groups: int) -> None:
    rows = torch.randn(40, groups, width, generator=torch.Generator().manual_seed(0))
    square = product(rows, rows)
    expected = torch.einsum("nga,ngb->gab", rows.double(), rows.double())
    torch.testing.assert_close(square.double(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(square, square.mT)


@pytest.mark.parametrize("limit", [0, 2**26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [7, 300, 1100])
def test_rows_that_wait_count_as_those_that_do_not(
    width: int, dtype: torch.dtype, limit: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = (200, 90, 30, 400)  # fewer than columns, as many together, and more at once
    parts = [torch.randn(n, 1, width, generator=generator, dtype=dtype) for n in counts]
    total = SquareSum(ArrayStore(limit))
    assert total.empty
    for position, rows in enumerate(parts):
        total.add(rows)
        if position == 1:  # looking at it on the way changes nothing
            assert total.is_finite
    expected = sum(torch.einsum("nga,ngb->gab", x.double(), x.double()) for x in parts)
    torch.testing.assert_close(
        torch.as_tensor(total.over(5.0)).double(), expected / 5.0, rtol=1e-4, atol=1e-3
    )


def test_squares_of_long_outputs_keep_their_digits() -> None:
    x = torch.randn(3, 2**20 + 77, generator=torch.Generator().manual_seed(0)) + 3.0
    assert squared_norm(x) == pytest.approx(float(x.double().square().sum()), rel=1e-6)
    assert squared_norm(x[:0]) == 0.0


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e18, 1e30])
def test_squares_out_of_the_range_of_float32_count(size: float) -> None:
    x = torch.full((9000,), size)
    assert squared_norm(x) == pytest.approx(9000 * size**2, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_seen(bad: float, dtype: torch.dtype) -> None:
    x = torch.full((50, 40), 3e38).to(dtype)
    assert all_finite(x)  # though its sum is not
    x[17, 5] = bad
    assert not all_finite(x)
