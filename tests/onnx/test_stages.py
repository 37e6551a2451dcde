"""Nodes in the place of a layer."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from dataclasses import replace

import numpy as np
from onnx import helper
from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Conv, Linear
from rankfold.ops.reference import forward
from rankfold_onnx.layers import layers_of
from rankfold_onnx.stages import run, staged


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
def test_stages_are_of_the_operators_of_the_model(opset: int) -> None:
    model = _of_version(opset)
    x = drawn(5, 12)
    small = rf.compress(model, rf.Ranks("full"), inputs=x).model
    assert [item.version for item in small.opset_import] == [opset]
    assert small.ir_version == model.ir_version
    assert sum(n.op_type == "MatMul" for n in small.graph.node) == 2
    graphs.near(graphs.run(small, x=x), graphs.run(model, x=x))


def _of_version(opset: int) -> Any:
    """Two Gemm; before opset 9 in a file in which every initializer is an input, too."""
    tensors = {"w": drawn(12, 20), "b": drawn(20), "v": drawn(20, 7), "c": drawn(7)}
    model = graphs.model(
        [node("Gemm", "x w b", "h", "a"), node("Relu", "h", "r"), node("Gemm", "r v c", "y", "b")],
        tensors,
        {"x": [5, 12]},
        {"y": [5, 7]},
        opset=opset,
        ir_version=10 if opset == 21 else 8,
    )
    if opset < 9:
        model.ir_version = 3
        model.graph.input.extend(
            helper.make_tensor_value_info(name, graphs.FLOAT, array.shape)
            for name, array in tensors.items()
        )
    return model


def layer_of(model: Any, path: str) -> Any:
    return layers_of(model)[1][path]


def test_a_chain_is_computed_by_its_nodes_in_float64_and_checked() -> None:
    model = graphs.perceptron()
    chain = (Linear(drawn(3, 12)), Linear(drawn(20, 3), drawn(20)))
    stages = staged(model, layer_of(model, "first"), chain)
    assert [n.op_type for n in stages.nodes] == ["MatMul", "Gemm"]
    assert not stages.is_refill
    x = drawn(5, 12).astype(np.float64)
    y = run(stages, x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, x @ (chain[1].weight @ chain[0].weight).T + drawn(20), rtol=1e-5)


def test_a_bias_that_was_added_is_added_again_in_its_shape() -> None:
    model = graphs.convolutional()
    layer = layer_of(model, "body")
    op = layer.op
    stages = staged(model, layer, (replace(op, weight=2 * op.weight),))
    assert [n.op_type for n in stages.nodes] == ["Conv", "Add"]
    assert stages.arrays["b0"].shape == (1, 24, 1, 1)
    assert stages.is_refill
    x = drawn(2, 16, 6, 5).astype(np.float64)
    np.testing.assert_allclose(run(stages, x), forward(stages.ops[0], x), rtol=1e-5, atol=1e-5)


def test_nodes_that_compute_something_else_than_their_ops_are_refused() -> None:
    model = graphs.perceptron()
    stages = staged(model, layer_of(model, "first"), (layer_of(model, "first").op,))
    stages.nodes[0].op_type = "NoSuchOperator"
    with pytest.raises((Refused, KeyError)):
        run(stages, drawn(5, 12).astype(np.float64))


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (Conv(drawn(20, 12, 1)), "no nodes for a Conv in a Linear"),
        (Linear(drawn(20, 6), groups=2), "with groups"),
    ],
)
def test_what_onnx_has_no_nodes_for_is_refused(op: Any, reason: str) -> None:
    model = graphs.perceptron()
    with pytest.raises(Refused, match=reason):
        staged(model, layer_of(model, "first"), (op,))
    padded = Conv(drawn(16, 3, 3, 3), padding=1, padding_mode="circular")
    model = graphs.convolutional()
    with pytest.raises(Refused, match="padding_mode 'circular'"):
        staged(model, layer_of(model, "stem"), (padded,))
