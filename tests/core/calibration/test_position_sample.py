"""Which output positions of a call are summed up."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.position_sample import PositionSample, chunks, flat_index, position_sample
from rankfold.ops import Conv, Linear

OP = Conv(np.ones((4, 3, 3, 3), np.float32))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_few_examples_are_taken_at_all_positions() -> None:
    drawn = position_sample(OP, (2, 9, 8), 2, rng())
    assert (drawn.images, drawn.positions, drawn.chosen, drawn.rows) == (2, 7 * 6, None, 84)
    image, position = drawn.of(slice(40, 44))
    assert image.tolist() == [0, 0, 1, 1]
    assert position.tolist() == [40, 41, 0, 1]


def test_of_many_a_sample_without_replacement_is_drawn_for_each_image() -> None:
    drawn = position_sample(OP, (6, 40, 40), 1000, rng())
    assert drawn.chosen is not None
    assert drawn.rows == drawn.chosen.size
    assert all(len(set(row)) == len(row) for row in drawn.chosen.tolist())
    assert len({tuple(row) for row in drawn.chosen.tolist()}) == 6
    image, position = drawn.of(slice(0, drawn.rows))
    for number in range(6):
        assert position[image == number].tolist() == drawn.chosen[number].tolist()


def test_no_images_give_no_rows() -> None:
    drawn = position_sample(Linear(np.ones((4, 3))), (0,), 1000, rng())
    assert drawn.rows == 0
    assert list(chunks(Linear(np.ones((4, 3))), drawn)) == []


@pytest.mark.parametrize("chosen", [None, np.zeros((3, 4096), np.int64)])
def test_chunks_cover_the_rows_once(chosen: np.ndarray | None) -> None:
    op = Conv(np.ones((512, 512, 3, 3), np.float32))
    drawn = PositionSample(3, 8192, chosen)
    parts = list(chunks(op, drawn))
    assert len(parts) > 1
    assert [row for part in parts for row in range(part.start, part.stop)] == list(
        range(drawn.rows)
    )


def test_flat_indices_are_those_of_a_row_major_array() -> None:
    array = np.arange(7 * 11 * 5).reshape(7, 11, 5)
    indices = np.indices((2, 3, 4)).reshape(3, -1)
    flat = flat_index(indices, (3, 2, 1), array.shape)
    np.testing.assert_array_equal(array.reshape(-1)[flat], array[:4:3, :5:2, :4].reshape(-1))
