"""Sums of products over rows."""

from __future__ import annotations

import pytest
import torch

from rankfold_torch.calibration.sums import product


@pytest.mark.parametrize("width", [3, 1025, 1200])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_square_is_the_product_of_rows_with_themselves(width: int, groups: int) -> None:
    rows = torch.randn(40, groups, width, generator=torch.Generator().manual_seed(0))
    square = product(rows, rows)
    expected = torch.einsum("nga,ngb->gab", rows.double(), rows.double())
    torch.testing.assert_close(square.double(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(square, square.mT)
