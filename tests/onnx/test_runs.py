"""Batches of calibration data on the branches that they take."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.onnx import graphs

import rankfold as rf
from rankfold.plugins import Calibration
from rankfold_onnx.layers import layers_of
from rankfold_onnx.runs import batch_runs


def test_layers_in_a_branch_are_met_with_the_data_that_takes_it() -> None:
    model = graphs.conditional()
    rng = np.random.default_rng(0)
    low = rng.standard_normal((3, 12))  # three directions
    batches = []
    for number in range(8):
        x = (rng.standard_normal((8, 3)) @ low).astype(np.float32)
        batches.append(np.abs(x) if number % 2 else -np.abs(x))
    small = rf.compress(model, rf.Ranks(6), inputs=batches[0], calibration=batches)
    moments = rf.gather(model, batches)
    names = ("choice.then_branch.inner", "choice.else_branch.inner", "choice.else_branch.last")
    assert [small.plan[name].measured is not None for name in names] == [True] * 3
    sizes = [moments[name].positions_per_example for name in names]
    assert sizes == [0.5, 0.5, 1.0]
    for x in batches[:2]:
        assert graphs.off(small.model, model, x) < 0.35


def test_batches_of_one_branch_share_its_segments_and_count_their_examples() -> None:
    within, layers = layers_of(graphs.conditional())
    x = np.abs(graphs.drawn(5, 12))
    batches = [x, -x[:3], x[:2]]
    runs = list(batch_runs(within, layers, Calibration.of(batches, None, None), layers))
    assert [(run.index, run.first, run.examples) for run in runs] == [
        (0, 0, 5),
        (1, 5, 3),
        (2, 8, 2),
    ]
    assert runs[0].segments is runs[2].segments is not runs[1].segments
    assert runs[1].segments.steps[0].call.path == "choice.else_branch.inner"
    np.testing.assert_array_equal(runs[2].feeds["x"], x[:2])


def test_a_batch_that_does_not_fit_is_named_with_its_number() -> None:
    within, layers = layers_of(graphs.conditional())
    batches = [graphs.drawn(5, 12), np.zeros((5, 12), np.int64)]
    with pytest.raises(rf.RankfoldError, match="calibration: batch 1: inputs: 'x' is int64"):
        list(batch_runs(within, layers, Calibration.of(batches, None, None), layers))
