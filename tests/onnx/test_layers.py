"""Which nodes are layers, how they are read, and why others are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper  # noqa: E402
from tests.onnx import graphs  # noqa: E402
from tests.onnx.graphs import constant, drawn, node  # noqa: E402

import rankfold as rf  # noqa: E402
from rankfold.ops.reference import forward  # noqa: E402
from rankfold_onnx.adapter import OnnxAdapter  # noqa: E402

W, B = drawn(12, 7), drawn(7)
X = drawn(5, 12)


def linear(nodes: list[Any], tensors: Mapping[str, np.ndarray], **options: Any) -> Any:
    return graphs.model(nodes, tensors, {"x": [5, 12]}, {"y": options.pop("y", None)}, **options)


READ = {
    "initializer": ([node("MatMul", "x w", "y")], {"w": W}),
    "node with the constant": ([constant("w", W), node("MatMul", "x w", "y")], {}),
    "identity": ([node("Identity", "w", "v"), node("MatMul", "x v", "y")], {"w": W}),
    "transposed": ([node("Transpose", "w", "v"), node("MatMul", "x v", "y")], {"w": W.T.copy()}),
    "twice": (
        [
            node("Transpose", "w", "v", perm=[1, 0]),
            node("Transpose", "v", "u", perm=[1, 0]),
            node("MatMul", "x u", "y"),
        ],
        {"w": W},
    ),
    "bias by Add": (
        [node("MatMul", "x w", "p"), node("Add", "b p", "y")],
        {"w": W, "b": B},
    ),
    "Gemm": ([node("Gemm", "x w b", "y")], {"w": W, "b": B}),
    "Gemm without bias": ([node("Gemm", "x w", "y")], {"w": W}),
    "Gemm, transposed": ([node("Gemm", "x w b", "y", transB=1)], {"w": W.T.copy(), "b": B}),
    "Gemm, scaled": (
        [node("Gemm", "x w b", "y", alpha=0.5, beta=3.0)],
        {"w": W, "b": B[None]},
    ),
    "Gemm, one number": ([node("Gemm", "x w b", "y")], {"w": W, "b": B[0]}),
}


@pytest.mark.parametrize("name", READ)
def test_a_matrix_is_read_wherever_it_is_stored(name: str) -> None:
    nodes, tensors = READ[name]
    model = linear(nodes, tensors)
    adapter = OnnxAdapter()
    [path] = adapter.layers(model)
    op = adapter.read(model, path)
    expected = graphs.run(model, x=X)
    graphs.near(forward(op, X), expected)
    small = rf.compress(model, rf.Ranks("full"), inputs=X, include="*").model
    graphs.near(graphs.run(small, x=X), expected)
    # What the layer had is not there any more.
    sizes = sorted(tensor.size for tensor in _tensors(small))
    assert sizes == sorted([12 * 7, 7 * 7, *([7] if op.bias is not None else [])])


def _tensors(model: Any) -> list[np.ndarray]:
    stored = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    constants = [a.t for n in model.graph.node for a in n.attribute if a.name == "value"]
    return stored + [numpy_helper.to_array(tensor) for tensor in constants]


INT8 = np.arange(84, dtype=np.int8).reshape(12, 7)
REFUSED = {
    "quantized": (
        [node("DequantizeLinear", "q s", "w"), node("MatMul", "x w", "y")],
        {"q": INT8, "s": np.float32(0.1)},
    ),
    "computed from constants by Mul": (
        [node("Mul", "v s", "w"), node("MatMul", "x w", "y")],
        {"v": W, "s": np.float32(2)},
    ),
    "tied": (
        [
            node("MatMul", "x w", "p"),
            node("Transpose", "w", "v"),
            node("MatMul", "p v", "q"),
            node("MatMul", "q w", "y"),
        ],
        {"w": W},
    ),
    "is also read by": (
        [node("MatMul", "x w", "p"), node("ReduceMax", "w", "m"), node("Add", "p m", "y")],
        {"w": W},
    ),
    "on the left": ([node("MatMul", "w x", "y")], {"w": drawn(3, 5)}),
    "is no matrix": ([node("MatMul", "x w", "y")], {"w": drawn(2, 12, 7)}),
    "transA": ([node("Gemm", "x w", "y", transA=1)], {"w": drawn(5, 7)}),
    "a number for each output fits": (
        [node("Gemm", "x w b", "y")],
        {"w": W, "b": drawn(5, 1)},
    ),
    "is computed as the model runs": (
        [
            node("ReduceSum", "x a", "b", keepdims=0),
            node("Gemm", "x w b", "y"),
        ],
        {"w": drawn(12, 12), "a": np.array([0])},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_layer_that_is_left_alone_has_a_reason(reason: str) -> None:
    nodes, tensors = REFUSED[reason]
    model = linear(nodes, tensors, y=[2, 5, 7] if "matrix" in reason else None)
    small = rf.compress(model, rf.Ranks(2), inputs=X)
    layers = small.plan.layers
    assert layers
    assert all(layer.method is None and reason in layer.reason for layer in layers), layers
    assert graphs.run(small.model, x=X) == pytest.approx(graphs.run(model, x=X))


def test_products_of_activations_and_indices_of_constants_are_no_layers() -> None:
    nodes = [
        node("Transpose", "x", "t"),
        node("MatMul", "x t", "a"),
        node("Gather", "table i", "g"),
        node("Add", "a g", "y"),
    ]
    model = linear(nodes, {"table": drawn(9, 5), "i": np.arange(5)})
    assert OnnxAdapter().layers(model) == {}


def test_nodes_with_the_same_weight_and_bias_are_one_layer() -> None:
    nodes = [
        node("MatMul", "x w", "p", "a"),
        node("Add", "p b", "q"),
        node("Relu", "q", "r"),
        node("MatMul", "r w", "s", "b"),
        node("Add", "s b", "y"),
    ]
    tensors = {"w": drawn(12, 12), "b": drawn(12)}
    model = linear(nodes, tensors)
    adapter = OnnxAdapter()
    assert list(adapter.layers(model)) == ["a"]
    assert adapter.aliases(model, "a") == ("b",)
    small = rf.compress(model, rf.Ranks("full"), inputs=X)
    assert small.plan["a"].macs == (2 * 5 * 144, 2 * 5 * 288)
    graphs.near(graphs.run(small.model, x=X), graphs.run(model, x=X))
    assert len(small.model.graph.initializer) == 3


def test_a_weight_with_a_default_is_an_input_but_not_in_old_files() -> None:
    for version, refused in ((8, True), (3, False)):
        model = linear([node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"w": W})
        model.graph.input.append(helper.make_tensor_value_info("w", graphs.FLOAT, W.shape))
        model.ir_version = version
        if version == 3:
            model.opset_import[0].version = 8
        small = rf.compress(model, rf.Ranks(2), inputs=X)
        [layer] = small.plan.layers
        assert (layer.method is None) == refused, layer
        assert ("input of the graph with a default" in layer.reason) == refused
        assert [item.name for item in small.model.graph.input] == (["x", "w"] if refused else ["x"])
        graphs.run(small.model, x=X)


def test_quantized_and_recurrent_nodes_are_named() -> None:
    nodes = [
        node("ConvInteger", "q k", "i", "whole"),
        node("Unsqueeze", "x axis", "s"),
        node("LSTM", "s wi wr", "y", "memory", hidden_size=4),
    ]
    tensors = {
        "k": np.ones((3, 2, 3, 3), np.int8),
        "q": np.ones((1, 2, 5, 5), np.uint8),
        "axis": np.array([0]),
        "wi": drawn(1, 16, 12),
        "wr": drawn(1, 16, 4),
    }
    model = graphs.model(nodes, tensors, {"x": [5, 12]}, {"y": [None] * 4})
    plan = rf.plan(model, rf.Ranks(2))
    assert plan["whole"].reason.startswith("quantized")
    assert plan["memory"].reason == "LSTM: a recurrent layer"


def test_the_body_of_a_function_is_left_alone() -> None:
    function = helper.make_function(
        "local",
        "Block",
        ["a", "w"],
        ["b"],
        [node("Gemm", "a w", "b", "inner")],
        [helper.make_opsetid("", 17)],
    )
    model = graphs.perceptron()
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    call = helper.make_node("Block", ["h", "w4"], ["g"], domain="local")
    model.graph.node.insert(1, call)
    model.graph.node[2].input[0] = "g"
    model.graph.initializer.append(numpy_helper.from_array(drawn(20, 20), "w4"))
    x = drawn(5, 12)
    expected = graphs.run(model, x=x)
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    graphs.near(graphs.run(small.model, x=x), expected)
    assert len(small.model.functions) == 1
    assert "inline it" in small.plan["local.Block.inner"].reason
    assert {layer.path for layer in small.plan.replaced} == {"first", "second"}


def test_a_table_is_a_layer_and_may_be_looked_up_from_its_end() -> None:
    nodes = [node("Gather", "table i", "e", "table"), node("MatMul", "e w", "y", "head")]
    tensors = {"table": drawn(30, 8), "w": drawn(8, 5)}
    model = graphs.model(nodes, tensors, {"i": [3, 4]}, {"y": [3, 4, 5]}, ["i"])
    indices = np.arange(12).reshape(3, 4) - 6
    small = rf.compress(model, rf.Ranks("full"), inputs=indices)
    assert {layer.path for layer in small.plan.replaced} == {"table", "head"}
    graphs.near(graphs.run(small.model, i=indices), graphs.run(model, i=indices))
    batches = [np.random.default_rng(n).integers(-30, 30, (3, 4)) for n in range(8)]
    moments = rf.gather(model, batches, inputs=indices)
    rows = np.concatenate([b.reshape(-1) for b in batches]) % 30
    assert moments["table"].inputs[0] == pytest.approx(np.bincount(rows, minlength=30) / 96)
