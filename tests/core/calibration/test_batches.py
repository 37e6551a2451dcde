"""Calibration batches: what of them the inputs are, and which examples are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rankfold as rf
from rankfold.calibration.batches import Calibration, examples, is_held_out


def test_every_fourth_example_is_held_out() -> None:
    numbers = np.arange(9)
    assert np.flatnonzero(is_held_out(numbers, 9)).tolist() == [3, 7]
    assert np.flatnonzero(is_held_out(np.arange(3), 3)).tolist() == [2]
    assert not is_held_out(np.arange(1), 1).any()


def test_batches_of_held_out_examples() -> None:
    x = np.arange(22).reshape(11, 2)
    batches = [{"x": x[:5], "scale": np.ones(2), "flag": True}, {"x": x[5:], "scale": np.ones(2)}]
    held = Calibration.of(batches, {"x": x[:1]}, None).held_out()
    assert [batch["x"].tolist() for batch in held.inputs] == [[[6, 7]], [[14, 15]]]
    assert held.batches[0]["flag"] is True
    assert held.batches[1]["scale"].shape == (2,)


def test_fitted_examples_are_those_that_are_not_held_out() -> None:
    x = np.arange(9)
    calibration = Calibration.of([(x[:5], x[:5]), (x[5:], x[5:])], (x, x), None)
    fitted = np.concatenate([batch[0] for batch in calibration.fitted().inputs])
    held = np.concatenate([batch[0] for batch in calibration.held_out().inputs])
    assert calibration.examples == 9
    assert fitted.tolist() == [0, 1, 2, 4, 5, 6, 8]
    assert held.tolist() == [3, 7]


def test_examples_are_counted_by_the_rule_of_the_framework() -> None:
    x = np.arange(18).reshape(9, 2)
    batch = {"key": np.array([3, 4], dtype=np.uint32), "x": x}
    calibration = Calibration.of(batch, None, None, lambda array: array.dtype != np.uint32)
    assert calibration.examples == 9
    held = calibration.held_out()
    assert held.examples == 2
    assert held.inputs[0]["x"].tolist() == [[6, 7], [14, 15]]
    assert held.inputs[0]["key"].tolist() == [3, 4]


def test_a_batch_without_held_out_examples_is_left_out() -> None:
    x = np.zeros((3, 2))
    held = Calibration.of([(x, x[:, 0]), (x, x[:, 0])], x, None).held_out()
    assert [len(batch[1]) for batch in held.batches] == [1]
    single = Calibration.of([x[:1]], x, None)
    assert single.held_out() is single


@pytest.mark.parametrize(
    ("inputs", "count"),
    [(np.zeros((3, 2)), 3), ((None, np.zeros(4)), 4), ({"x": np.float64(1)}, 1), ((), 1)],
)
def test_examples_are_counted_on_the_first_array(inputs: Any, count: int) -> None:
    assert examples(inputs) == count


@pytest.mark.parametrize(
    ("batches", "example", "loss", "message"),
    [
        ([], None, None, "no batch"),
        (3, None, None, "calibration: int"),
        ([{"x": 1}], {"x": 1, "y": 2}, None, "batch 0 has no 'y'"),
        ([(1,)], (1, 2), None, "fewer than the 2 of inputs="),
        ([np.zeros(3)], None, "accuracy", "loss 'accuracy'"),
        ([np.zeros((2, 3)), np.zeros((0, 3))], None, None, r"batch 1 of shape \(0, 3\) is empty"),
        (np.zeros(20), np.zeros((1, 20)), None, r"shape \(20,\) where inputs= has \(1, 20\)"),
    ],
)
def test_what_does_not_fit_is_named(batches: Any, example: Any, loss: Any, message: str) -> None:
    with pytest.raises(rf.RankfoldError, match=message):
        Calibration.of(batches, example, loss)


def test_scalars_and_what_the_framework_says_are_no_examples() -> None:
    key = np.array([3, 4], dtype=np.uint32)
    inputs = {"t": np.zeros(()), "key": key, "x": np.zeros((7, 2))}
    assert examples((np.float32(0.5), np.zeros((7, 2)))) == 7
    assert examples(inputs) == 2
    assert examples(inputs, lambda array: array.dtype != np.uint32) == 7
    assert examples((np.zeros(()),)) == 1
