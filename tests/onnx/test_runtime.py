"""Inputs by the names of a graph, and sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from onnx import TensorProto, helper
from tests.onnx import graphs
from tests.onnx.graphs import drawn

import rankfold as rf
from rankfold_onnx import runtime
from rankfold_onnx.adapter import OnnxAdapter

BAD: dict[str, Any] = {
    "'x' is missing; the graph has x": {},
    "the graph has no 'z'; it has x": {"x": np.zeros((5, 12), np.float32), "z": np.zeros(3)},
    "'x' is int64, the graph wants float32": np.zeros((5, 12), np.int64),
    "2 arrays for a graph with 1 inputs": (np.zeros((5, 12)), np.zeros(3)),
    "the model fails": np.zeros((5, 13), np.float32),
}


@pytest.mark.parametrize("message", BAD)
def test_inputs_that_do_not_fit_are_an_error(message: str) -> None:
    with pytest.raises(rf.RankfoldError, match=f"inputs: .*{message}"):
        rf.plan(graphs.perceptron(), rf.Ranks(2), inputs=BAD[message])


def test_inputs_come_as_array_sequence_or_mapping_of_any_precision() -> None:
    model, x = graphs.perceptron(), drawn(5, 12)
    for inputs in (x, x.astype(np.float64), (x,), [x], {"x": x}):
        assert OnnxAdapter().trace(model, inputs).extents["first"] == ((5,),)


def test_a_model_that_cannot_run_is_told_apart_from_inputs_that_it_fails_on() -> None:
    model = graphs.perceptron()
    running = runtime.session(model)
    (y,) = runtime.run(running, ["y"], {"x": drawn(3, 12)})
    assert y.shape == (3, 7)
    with pytest.raises(runtime.FailedError, match="the model fails with"):
        runtime.run(running, None, {"x": drawn(3, 13)})
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(runtime.NotRunError, match="onnxruntime cannot run the model"):
        runtime.session(model)


def test_inputs_with_a_default_may_be_left_out_or_given_by_name() -> None:
    model = graphs.perceptron()
    model.graph.input.append(helper.make_tensor_value_info("b2", graphs.FLOAT, [7]))
    x, bias = drawn(3, 12), np.ones(7)
    assert list(runtime.feeds_of(model, x)) == ["x"]
    feeds = runtime.feeds_of(model, {"x": x, "b2": bias})
    assert feeds["b2"].dtype == np.float32


def test_a_part_has_the_operators_of_its_model_and_values_of_any_shape() -> None:
    model = graphs.perceptron()
    part = runtime.part_of(model, model.graph)
    assert [item.version for item in part.opset_import] == [17]
    described = runtime.typed("h", drawn(3, 2).astype(np.float16))
    assert described.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert not described.type.tensor_type.HasField("shape")
    with pytest.raises(runtime.NotRunError, match="'h' of the graph is no tensor"):
        runtime.typed("h", [drawn(3)])
    assert runtime.as_float32(np.ones((2, 3)).T).flags.c_contiguous
