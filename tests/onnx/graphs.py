"""Small graphs, built by onnx.helper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> NodeProto:
    """A node by the names of its inputs and outputs, separated by blanks."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attributes)


def constant(name: str, array: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def graph(
    nodes: Sequence[NodeProto],
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any] | None],
    integers: Sequence[str] = (),
) -> onnx.GraphProto:
    def value(name: str, shape: Sequence[Any] | None) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if name in integers else FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    return helper.make_graph(
        list(nodes),
        "graph",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )


def model(
    nodes: Sequence[NodeProto],
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any] | None],
    integers: Sequence[str] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    ranked = {name: [None, None] if shape is None else shape for name, shape in outputs.items()}
    whole = helper.make_model(
        graph(nodes, tensors, inputs, ranked, integers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="tests",
    )
    onnx.checker.check_model(whole, full_check=True)
    return whole


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    """The first output, after a check of the model."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, feeds)[0]


def near(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def off(small: Any, model: Any, x: np.ndarray) -> float:
    y = run(model, x=x)
    return float(np.linalg.norm(run(small, x=x) - y) / np.linalg.norm(y))


def images(count: int, seed: int) -> np.ndarray:
    """Images of a few patterns, so that inputs of layers do not fill their space."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(9).standard_normal((4, 3, 12, 10))
    mixed = np.einsum("np,pchw->nchw", rng.standard_normal((count, 4)), patterns)
    return (mixed + 0.05 * rng.standard_normal(mixed.shape)).astype(np.float32)


def perceptron(bias: bool = True) -> onnx.ModelProto:
    """Gemm, Relu, MatMul and Add: 12 to 20 to 7."""
    nodes = [
        node("Gemm", "x w1 b1" if bias else "x w1", "h", "first", transB=1),
        node("Relu", "h", "r"),
        node("MatMul", "r w2", "p", "second"),
        node("Add", "p b2", "y", "second.bias"),
    ]
    tensors = {"w1": drawn(20, 12), "b1": drawn(20), "w2": drawn(20, 7, seed=1), "b2": drawn(7)}
    if not bias:
        del tensors["b1"]
    return model(nodes, tensors, {"x": ["n", 12]}, {"y": ["n", 7]})


def convolutional() -> onnx.ModelProto:
    """Two convolutions, a pooling and a head on images (n, 3, 12, 10)."""
    nodes = [
        node("Conv", "x k1 c1", "a", "stem", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", "a", "ar"),
        node(
            "Conv", "ar k2", "b", "body", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]
        ),
        node("Add", "b c2", "bb", "body.bias"),
        node("Relu", "bb", "br"),
        node("GlobalAveragePool", "br", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w3 b3", "y", "head"),
    ]
    tensors = {
        "k1": drawn(16, 3, 3, 3),
        "c1": drawn(16),
        "k2": drawn(24, 16, 3, 3),
        "c2": drawn(1, 24, 1, 1),
        "w3": drawn(24, 5),
        "b3": drawn(5),
    }
    return model(nodes, tensors, {"x": ["n", 3, 12, 10]}, {"y": ["n", 5]})


def conditional() -> onnx.ModelProto:
    """An If whose branches have layers, and names, of their own, and share one weight."""

    def branch(weights: str) -> onnx.GraphProto:
        nodes = [
            node("MatMul", f"x {weights}", "h", "inner"),
            node("Relu", "h", "r"),
            node("MatMul", "r shared", "out", "last"),
        ]
        tensors = {weights: drawn(12, 20, seed=len(weights))}
        return graph(nodes, tensors, {}, {"out": None})

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        constant("zero", np.float32(0)),
        node("Greater", "total zero", "positive"),
        node("If", "positive", "y", "choice", then_branch=branch("u"), else_branch=branch("vv")),
    ]
    return model(nodes, {"shared": drawn(20, 7)}, {"x": ["n", 12]}, {"y": None})


def looped() -> onnx.ModelProto:
    """A Loop that applies a layer to its state three times."""
    body = helper.make_graph(
        [
            node("MatMul", "state w", "product", "inner"),
            node("Tanh", "product", "next"),
            node("Identity", "go", "going"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, ["n", 12]),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, ["n", 12]),
        ],
    )
    nodes = [
        constant("three", np.int64(3)),
        constant("true", np.bool_(True)),
        node("MatMul", "x v", "start", "outer"),
        node("Loop", "three true start", "end", "loop", body=body),
        node("MatMul", "end u", "y", "head"),
    ]
    tensors = {"v": drawn(10, 12), "w": drawn(12, 12), "u": drawn(12, 6)}
    return model(nodes, tensors, {"x": ["n", 10]}, {"y": ["n", 6]})
