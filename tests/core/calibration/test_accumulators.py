"""How many rows a moment is made of."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.accumulators import sampled_positions
from rankfold.calibration.patch_sketch import COLUMNS
from rankfold.ops import Conv


@pytest.mark.parametrize("channels", [1, 64, 128, 256, 512])
@pytest.mark.parametrize("examples", [1, 8, 64, 1000])
def test_rows_suffice_for_the_width_and_no_more(channels: int, examples: int) -> None:
    op = Conv(np.zeros((4, channels, 3, 3), np.float32))
    width = 9 * channels
    rows = examples * sampled_positions(op, examples)
    assert rows >= width
    # Positions are counted by example, so that one more of each may be more than is needed.
    narrow = max(12800, 4 * width)
    most = narrow if width <= 1024 else min(narrow, max(width, 64 * examples))
    assert rows < most + examples


@pytest.mark.parametrize("examples", [1, 8, 64, 1000])
def test_rows_of_wide_patches_do_not_grow_with_the_patch(examples: int) -> None:
    rows = {
        sampled_positions(Conv(np.zeros((1, channels, 64, 1), np.float32)), examples)
        for channels in (128, 1024)
    }
    assert len(rows) == 1
    assert rows.pop() * examples >= 16 * COLUMNS
