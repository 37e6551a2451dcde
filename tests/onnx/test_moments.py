"""Moments of layers on calibration data, against direct computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

import rankfold as rf
from rankfold.plugins import Calibration, LayerMoments
from rankfold_onnx.layers import layers_of
from rankfold_onnx.moments import moments


def gathered(model: Any, batches: Any, paths: Any = None) -> dict[str, LayerMoments]:
    read, layers = layers_of(model)
    ops = {path: layer.op for path, layer in layers.items() if paths is None or path in paths}
    calibration = Calibration.of(batches, None, None)
    return moments(read, layers, calibration, ops, np.random.default_rng(0), lambda item: None)


def near(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_moments_of_a_chain_of_layers_are_means_over_the_rows() -> None:
    model = graphs.perceptron()
    batches = [drawn(8, 12), drawn(3, 12, seed=1)]
    first, second = gathered(model, batches).values()
    x = np.concatenate(batches).astype(np.float64)
    weight, bias = drawn(20, 12), drawn(20)
    hidden = np.maximum(x @ weight.T + bias, 0)
    for layer, rows in ((first, x), (second, hidden)):
        near(layer.inputs[0], rows.T @ rows / 11)
        near(layer.mean[0], rows.mean(0))
        assert (layer.samples, layer.positions_per_example) == (11, 1)


def test_weights_behind_other_nodes_are_computed_before_their_layer() -> None:
    nodes = [
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("MatMul", "x wt", "h", "first"),
        node("Identity", "v", "vi"),
        node("MatMul", "h vi", "y", "second"),
    ]
    tensors = {"w": drawn(7, 12), "v": drawn(7, 5)}
    model = graphs.model(nodes, tensors, {"x": ["n", 12]}, {"y": ["n", 5]})
    batches = [drawn(8, 12), drawn(3, 12, seed=1)]
    first, second = gathered(model, batches).values()
    x = np.concatenate(batches).astype(np.float64)
    for layer, rows in ((first, x), (second, x @ tensors["w"].T)):
        near(layer.inputs[0], rows.T @ rows / 11)
    small = rf.compress(model, rf.Ranks(3), inputs=batches[0], calibration=[drawn(32, 12)])
    assert small.plan["first"].predicted is not None


def test_a_convolution_has_the_moments_of_its_patches() -> None:
    model, x = graphs.convolutional(), np.random.default_rng(0).random((2, 3, 12, 10), np.float32)
    stem = gathered(model, [x], ["stem"])["stem"]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    near(stem.inputs[0], rows.T @ rows / len(rows))
    assert stem.positions_per_example == 120


def test_a_table_counts_its_rows_from_either_end() -> None:
    nodes = [node("Gather", "table i", "e", "table"), node("ReduceSum", "e", "y", keepdims=0)]
    model = graphs.model(nodes, {"table": drawn(5, 3)}, {"i": ["n", 2]}, {"y": []}, ["i"])
    table = gathered(model, [np.array([[0, -1], [4, 2]])])["table"]
    near(table.inputs[0], np.array([1, 0, 1, 0, 2]) / 4)
    assert table.positions_per_example == 2


def test_inputs_that_are_not_finite_and_batches_that_fail_are_named() -> None:
    model = graphs.perceptron()
    with pytest.raises(rf.RankfoldError, match=r"layer 'first': its input .* NaN"):
        gathered(model, [np.full((2, 12), np.nan, np.float32)])
    with pytest.raises(rf.RankfoldError, match="batch 1"):
        gathered(model, [drawn(2, 12), drawn(2, 13)])
