from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rankfold.calibration.batches import Calibration
from rankfold.calibration.perturbations import PerturbedBatches


def batches(inputs: list[Any], seed: int = 0, axes: tuple[int, int] = (2, 3)) -> PerturbedBatches:
    calibration = Calibration.of(inputs, None, None)
    return PerturbedBatches(calibration, axes, np.random.default_rng(seed))


def ramp(count: int, *shape: int) -> np.ndarray:
    return np.broadcast_to(
        np.arange(count, dtype=np.float32).reshape(-1, *(1,) * len(shape)), (count, *shape)
    ).copy()


def test_examples_are_mixed_in_pairs_by_one_share() -> None:
    x = np.eye(6, 7, dtype=np.float32)
    drawn = batches([x]).draw()
    assert drawn.shape == x.shape
    assert drawn.dtype == x.dtype
    np.testing.assert_allclose(drawn.sum(1), 1.0, rtol=1e-6)
    assert set((drawn > 0).sum(1)) <= {1, 2}
    assert (drawn[drawn > 0] < 1).any()


def test_arrays_of_one_example_are_mixed_alike() -> None:
    x = ramp(8, 3)
    first, second = batches([(x, 2 * x[:, :1])]).draw()
    np.testing.assert_allclose(second[:, 0], 2 * first[:, 0], rtol=1e-6)


@pytest.mark.parametrize("axes", [(2, 3), (1, 2)])
def test_images_move_by_a_tenth_at_most_and_repeat_their_edges(axes: tuple[int, int]) -> None:
    height, width = 20, 30
    rows = np.arange(height)[:, None] + np.zeros((height, width))
    columns = np.arange(width) + np.zeros((height, width))
    image = np.stack([rows, columns]).astype(np.float32)  # (2, height, width)
    image = image if axes == (2, 3) else np.moveaxis(image, 0, -1)
    draws = batches([np.stack([image] * 9)], axes=axes)
    drawn = draws._shifted({0: np.stack([image] * 9)})[0]
    moved = drawn if axes == (2, 3) else np.moveaxis(drawn, -1, 1)
    off = moved - np.stack([rows, columns])
    assert np.abs(off[:, 0]).max() == 2
    assert np.abs(off[:, 1]).max() == 3
    # Each image by a shift of its own; away from the edges it is the same everywhere.
    middle = off[:, :, 4:-4, 4:-4]
    assert (middle == middle[:, :, :1, :1]).all()
    assert len({tuple(move) for move in middle[:, :, 0, 0].tolist()}) > 1


@pytest.mark.parametrize(
    "inputs",
    [
        {"tokens": np.arange(24).reshape(8, 3)},
        (np.arange(24).reshape(8, 3), np.ones((8, 2), np.float32)),
        (np.ones((8, 2), np.float32), np.arange(8) % 2 == 0),
    ],
)
def test_what_stands_beside_tokens_and_masks_is_drawn_as_it_is(inputs: Any) -> None:
    drawn = batches([inputs]).draw()
    parts = drawn.values() if isinstance(drawn, dict) else drawn
    known = inputs.values() if isinstance(inputs, dict) else inputs
    for part, whole in zip(parts, known, strict=True):
        assert sorted(part.tolist()) == sorted(whole.tolist())


def test_examples_of_all_batches_of_a_kind_meet_and_each_is_drawn_once_a_round() -> None:
    draws = batches([np.arange(4)[:, None], 4 + np.arange(4)[:, None]])
    drawn = np.concatenate([draws.draw(), draws.draw()])
    assert sorted(drawn[:, 0]) == list(range(8))
    assert {*drawn[:4, 0]} not in ({0, 1, 2, 3}, {4, 5, 6, 7})


def test_batches_of_other_shapes_are_drawn_apart() -> None:
    draws = batches([np.zeros((4, 5), np.int64), np.ones((6, 3), np.int64)])
    shapes = {draws.draw().shape for _ in range(30)}
    assert shapes == {(4, 5), (6, 3)}


def test_a_step_takes_64_examples_at_most() -> None:
    assert len(batches([np.zeros((100, 2), np.float32)]).draw()) == 64


def test_what_is_no_array_of_examples_goes_with_its_batch() -> None:
    draws = batches([(np.ones((4, 2), np.float32), 1, "a"), (np.zeros((4, 2), np.float32), 0, "b")])
    for _ in range(10):
        x, number, word = draws.draw()
        assert word == "ba"[number]
        assert (x == number).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_come_back_as_tensors_of_their_dtype(dtype: torch.dtype) -> None:
    drawn = batches([{"x": torch.randn(6, 2, 5, 7, dtype=dtype, requires_grad=True)}]).draw()
    assert drawn["x"].dtype == dtype
    assert not drawn["x"].requires_grad


def test_the_same_seed_draws_the_same() -> None:
    x = np.random.default_rng(0).standard_normal((9, 3, 4, 5))
    first, second, other = (batches([x], seed) for seed in (1, 1, 2))
    for _ in range(3):
        drawn = first.draw()
        np.testing.assert_array_equal(drawn, second.draw())
        assert not np.array_equal(drawn, other.draw())
