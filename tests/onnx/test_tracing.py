"""Shapes of layers' inputs, the branches that are taken, and inputs that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from onnx import TensorProto, numpy_helper
from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

import rankfold as rf
from rankfold_onnx.adapter import OnnxAdapter


def test_extents_are_those_of_the_inputs() -> None:
    trace = OnnxAdapter().trace(graphs.convolutional(), drawn(2, 3, 12, 10))
    assert trace.extents == {"stem": ((2, 12, 10),), "body": ((2, 12, 10),), "head": ((2,),)}
    assert not trace.uncounted
    assert not trace.refusals


def test_layers_of_the_branch_that_is_not_taken_are_not_called() -> None:
    model = graphs.conditional()
    for sign, taken in ((1, "then"), (-1, "else")):
        trace = OnnxAdapter().trace(model, sign * np.abs(drawn(5, 12)))
        called = {path for path, extents in trace.extents.items() if extents}
        assert called == {f"choice.{taken}_branch.inner", "choice.else_branch.last"}
        assert trace.outputs == {"choice.else_branch.last"}


def test_a_type_that_onnxruntime_does_not_compute_is_traced_by_its_shapes() -> None:
    nodes = [node("Conv", "x w", "h", "first"), node("Conv", "h v", "y", "second")]
    tensors = {
        "w": drawn(8, 3, 3, 3).astype(np.float64),
        "v": drawn(4, 8, 3, 3).astype(np.float64),
    }
    narrow = {name: array.astype(np.float32) for name, array in tensors.items()}
    model = graphs.model(nodes, narrow, {"x": ["n", 3, 9, 8]}, {"y": [None] * 4})
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
    trace = OnnxAdapter().trace(model, np.zeros((2, 3, 9, 8)))
    assert trace.extents == {"first": ((2, 9, 8),), "second": ((2, 7, 6),)}


def test_tied_layers_count_their_multiply_accumulates() -> None:
    nodes = [
        node("MatMul", "x w", "h", "a"),
        node("Transpose", "w", "t"),
        node("MatMul", "h t", "y", "b"),
    ]
    model = graphs.model(nodes, {"w": drawn(12, 7)}, {"x": [5, 12]}, {"y": [5, 12]})
    plan = rf.plan(model, rf.Ranks(2), inputs=drawn(5, 12))
    assert plan.macs == (2 * 5 * 84, 2 * 5 * 84)


def test_a_layer_without_a_count_is_named() -> None:
    nodes = [
        node("MatMul", "x w", "h", "before"),
        node("Unsqueeze", "h axis", "s"),
        node("GRU", "s wi wr", "g", "memory", hidden_size=4),
        node("Squeeze", "g", "y"),
    ]
    tensors = {
        "w": drawn(12, 8),
        "axis": np.array([0]),
        "wi": drawn(1, 12, 8),
        "wr": drawn(1, 12, 4),
    }
    model = graphs.model(nodes, tensors, {"x": [5, 12]}, {"y": [5, 4]})
    plan = rf.plan(model, rf.Energy(0.5), inputs=drawn(5, 12), include="before")
    assert plan["memory"].macs is None
    assert any("'memory'" in note for note in plan.notes)
