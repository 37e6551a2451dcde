"""Nodes and tensors that take the place of a layer, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op
from rankfold.ops.reference import forward
from rankfold_onnx import nodes, runtime
from rankfold_onnx.graph import attribute
from rankfold_onnx.layers import Layer

X, Y = "x", "y"
"""Names of what goes into stages and what comes out, before they are in a graph."""
_RUNTIME_ERROR = 1e-3
"""Relative error up to which onnxruntime, in float32, gives what a node is read back as. A wrong
attribute or layout is off by the size of the output; the rounding of sums over ten thousand
products by 1e-5."""


@dataclass(frozen=True, eq=False)
class Stages:
    """Nodes in the place of a layer, by names of their own.

    Attributes:
        model: whose operators they are of.
        nodes: one after the other, from `X` to `Y`.
        arrays: their weights and biases by name; the weight of the stage i is "w{i}".
        is_refill: whether they are the nodes of the layer itself with other numbers.
        ops: what the nodes compute, as they were built.
    """

    model: ModelProto
    nodes: tuple[NodeProto, ...]
    arrays: Mapping[str, Array]
    is_refill: bool
    ops: Chain

    def as_model(self, dtype: np.dtype[np.generic] | None = None) -> ModelProto:
        """Return the stages as a model of their own.

        Args:
            dtype: of the weights in place of theirs.
        """
        tensors = [
            numpy_helper.from_array(a if dtype is None else np.asarray(a).astype(dtype), name)
            for name, a in self.arrays.items()
        ]
        first = next(iter(self.arrays.values()))
        kind = np.dtype(np.int64) if isinstance(self.ops[0], Embedding) else dtype or first.dtype
        x = helper.make_tensor_value_info(X, helper.np_dtype_to_tensor_dtype(kind), None)
        graph = helper.make_graph(
            list(self.nodes), "stages", [x], [ValueInfoProto(name=Y)], tensors
        )
        return runtime.part_of(self.model, graph)


def staged(model: ModelProto, layer: Layer, chain: Chain) -> Stages:
    """Return nodes for a chain in the place of a layer.

    Raises:
        Refused: no nodes compute the chain.
    """
    for op in chain:
        _check_stage(layer.op, op)
    like, add = layer.calls[0].node, layer.calls[0].add_node
    arrays: dict[str, Array] = {}
    built: list[NodeProto] = []
    last = len(chain) - 1
    x = X
    for index, op in enumerate(chain):
        y = Y if index == last else f"h{index}"
        bias = None if isinstance(op, Embedding) else op.bias
        transposed = (
            layer.kind == "Gemm" and bias is not None and bool(attribute(like, "transB", 0))
        )
        arrays[f"w{index}"] = _cast(nodes.stored(op, transposed=transposed), layer)
        inputs = [x, f"w{index}"]
        if bias is not None:
            arrays[f"b{index}"] = _cast(np.asarray(bias), layer)
            inputs.append(f"b{index}")
        built += _nodes(op, inputs, y, like, layer, by_add=add is not None)
        x = y
    if add is not None and chain[-1].bias is not None:
        assert layer.bias is not None
        arrays[f"b{last}"] = arrays[f"b{last}"].reshape(layer.bias.shape)
    first, whole = chain[0], layer.op
    refill = len(chain) == 1 and type(first) is type(whole)
    return Stages(
        model, tuple(built), arrays, refill and first.weight.shape == whole.weight.shape, chain
    )


def run(stages: Stages, x: Array) -> Array:
    """Return the output of stages in float64, after a check against onnxruntime.

    onnxruntime has no convolutions in float64. So the nodes are read back as ops and computed by
    the reference, and the runtime has to give the same in float32.

    Raises:
        Refused: it does not, or cannot run the nodes.
    """
    exact = np.asarray(forward(_read_back(stages), x))
    try:
        running = runtime.session(stages.as_model(np.dtype(np.float32)), optimized=False)
        table = isinstance(stages.ops[0], Embedding)
        fed = np.asarray(x, np.int64) if table else runtime.as_float32(x)
        (single,) = runtime.run(running, [Y], {X: fed})
    except RankfoldError as error:
        raise Refused(f"onnxruntime cannot run the replacement: {error}") from error
    size = float(np.linalg.norm(exact))
    same = single.shape == exact.shape
    if not same or not np.linalg.norm(single - exact) <= _RUNTIME_ERROR * size:
        raise Refused("onnxruntime computes something else for the replacement than its reference")
    return exact


def _read_back(stages: Stages) -> list[Op]:
    """Return the ops that the nodes compute."""
    ops: list[Op] = []
    values = {name: np.asarray(a).astype(np.float64) for name, a in stages.arrays.items()}
    for node in stages.nodes:
        if node.op_type == "Add":  # the bias of the node before it
            last = ops.pop()
            assert not isinstance(last, Embedding)
            name = next(name for name in node.input if name in values)
            ops.append(type(last)(**{**vars(last), "bias": values[name].reshape(-1)}))
            continue
        weight = values[node.input[nodes.weight_position(node)]]
        bias = values[node.input[2]] if len(node.input) > 2 else None
        ops.append(nodes.read(node, weight, bias))
    return ops


def _check_stage(whole: Op, op: Op) -> None:
    if isinstance(whole, Embedding):
        fits = isinstance(op, (Embedding, Linear))
    elif isinstance(whole, Linear):
        fits = isinstance(op, Linear)
    else:
        fits = isinstance(op, (Conv, ConvTranspose))
    if not fits:
        raise Refused(f"no nodes for a {type(op).__name__} in a {type(whole).__name__}")
    if isinstance(op, Linear) and op.groups > 1:
        raise Refused("ONNX has no Gemm or MatMul with groups")
    if isinstance(op, Conv) and op.padding_mode != "zeros":
        raise Refused(f"ONNX has no Conv with padding_mode {op.padding_mode!r}")


def _nodes(
    op: Op, inputs: Sequence[str], y: str, like: NodeProto, layer: Layer, *, by_add: bool
) -> list[NodeProto]:
    """Return the node of a stage; with one that adds its bias, where the layer has that."""
    bias = inputs[2] if len(inputs) > 2 else None
    inner = f"{y}.sum" if by_add and bias is not None else y
    read = list(inputs[:2] if by_add else inputs)
    if isinstance(op, Embedding):
        stage = helper.make_node("Gather", [inputs[1], inputs[0]], [y], axis=0)
    elif isinstance(op, (Conv, ConvTranspose)):
        stage = nodes.convolution(op, read, inner)
    elif layer.kind == "Gemm" and bias is not None:
        # A Gemm with its bias stays one. Stages without are MatMul: before opset 11, Gemm has no
        # form without a bias.
        stage = helper.make_node("Gemm", read, [inner])
        stage.attribute.extend(
            a for a in like.attribute if a.name not in ("alpha", "beta", "transA")
        )
    else:
        stage = helper.make_node("MatMul", read, [inner])
    if inner == y:
        return [stage]
    assert bias is not None
    return [stage, helper.make_node("Add", [inner, bias], [y])]


def _cast(array: Array, layer: Layer) -> Array:
    return np.ascontiguousarray(np.asarray(array).astype(layer.dtype))
