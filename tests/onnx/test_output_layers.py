"""Which layers give the outputs of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from onnx import TensorProto
from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

import rankfold as rf
from rankfold_onnx.adapter import OnnxAdapter

T = {"w": drawn(12, 6), "v": drawn(6, 6), "u": drawn(6, 6), "s": np.float32(2), "i": np.array([0])}
ENDS = {
    "squashed": ([node("MatMul", "h v", "p", "b"), node("Sigmoid", "p", "y")], {"b"}),
    "scaled and picked": (
        [
            node("MatMul", "h v", "p", "b"),
            node("Mul", "p s", "q"),
            node("Gather", "q i", "y", axis=1),
        ],
        {"b"},
    ),
    "concatenated": (
        [
            node("MatMul", "h v", "p", "b"),
            node("MatMul", "h u", "q", "c"),
            node("Concat", "p q", "y", axis=1),
        ],
        {"b", "c"},
    ),
    "added to another activation": (
        [node("MatMul", "h v", "p", "b"), node("Add", "p h", "y")],
        set(),
    ),
    "multiplied with another": (
        [
            node("MatMul", "h v", "p", "b"),
            node("MatMul", "p t", "y"),
        ],
        set(),
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_layer_gives_an_output_if_nothing_but_a_scale_is_behind_it(name: str) -> None:
    nodes, expected = ENDS[name]
    if name == "multiplied with another":
        nodes = [node("Transpose", "h", "t"), *nodes]
    nodes = [node("MatMul", "x w", "a", "a"), node("Relu", "a", "h"), *nodes]
    used = {name for n in nodes for name in n.input}
    tensors = {key: value for key, value in T.items() if key in used}
    model = graphs.model(nodes, tensors, {"x": [6, 12]}, {"y": None})
    assert OnnxAdapter().trace(model, drawn(6, 12)).outputs == expected
    assert set(OnnxAdapter().named_outputs(model)) == expected


def test_without_inputs_the_outputs_of_all_branches_count() -> None:
    def branch(weight: str) -> Any:
        inner = [node("MatMul", f"x {weight}", "out", "layer")]
        return graphs.graph(inner, {weight: drawn(12, 6, seed=len(weight))}, {}, {"out": None})

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Cast", "total", "some", to=TensorProto.BOOL),
        node("If", "some", "y", "choice", then_branch=branch("u"), else_branch=branch("vv")),
    ]
    model = graphs.model(nodes, {}, {"x": [6, 12]}, {"y": None})
    names = {"choice.then_branch.layer", "choice.else_branch.layer"}
    assert set(OnnxAdapter().named_outputs(model)) == names


def test_a_policy_of_single_layers_spares_it_unless_it_is_named() -> None:
    model, x = graphs.perceptron(), drawn(5, 12)
    assert rf.plan(model, rf.Energy(0.5), inputs=x)["second"].method is None
    assert "output of the model" in rf.plan(model, rf.Energy(0.5), inputs=x)["second"].reason
    assert rf.plan(model, rf.Energy(0.5), inputs=x, include="*")["second"].method == "svd"
