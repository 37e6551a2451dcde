"""The layers of a model: nodes with a weight of their own, and why others are left alone.

Several nodes that read the same weight and bias with the same attributes are one layer that is
applied several times. An Add of one number for each channel right behind a node without a bias is
the bias of its layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto, NodeProto, helper

from rankfold.errors import Refused
from rankfold.ops import Op
from rankfold_onnx import nodes
from rankfold_onnx.graph import Constant, Graphs, Scope, Use, is_float, op_of

_QUANTIZED = (
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "com.microsoft.QGemm",
    "com.microsoft.QAttention",
    "com.microsoft.QEmbedLayerNormalization",
    "com.microsoft.DynamicQuantizeMatMul",
    "com.microsoft.DynamicQuantizeLSTM",
    "com.microsoft.MatMulIntegerToFloat",
    "com.microsoft.MatMulNBits",
    "com.microsoft.MatMulBnb4",
    "com.microsoft.GatherBlockQuantized",
    "com.microsoft.QMoE",
)
_RECURRENT = ("LSTM", "GRU", "RNN")
_FUSED = (
    "com.microsoft.FusedConv",
    "com.microsoft.FusedGemm",
    "com.microsoft.FusedMatMul",
    "com.microsoft.GemmFastGelu",
    "com.microsoft.NhwcFusedConv",
    "com.microsoft.nchwc.Conv",
    "com.microsoft.Attention",
    "com.microsoft.EmbedLayerNormalization",
    "com.microsoft.MoE",
)
_REASONS = {
    **dict.fromkeys(
        _QUANTIZED, "quantized: {op} works on integers; compress the model before it is quantized"
    ),
    **dict.fromkeys(_RECURRENT, "{op}: a recurrent layer"),
    **dict.fromkeys(
        _FUSED, "{op} is a node that onnxruntime has fused; export the model without that"
    ),
    "DeformConv": "{op}: its positions are computed as it runs",
    "Einsum": "{op}: write it as MatMul",
}
"""By type, why nodes with a weight are no layers here."""


@dataclass(frozen=True, eq=False)
class Call:
    """One node of a layer, with the Add that is its bias.

    Attributes:
        scope: of both nodes.
        index: of the node with the weight.
        add: the index of an Add behind it and at which of its inputs the bias is; None without.
        path: in the model.
    """

    scope: Scope
    index: int
    add: tuple[int, int] | None
    path: str

    @property
    def node(self) -> NodeProto:
        """The node with the weight."""
        return self.scope.node(self.index)

    @property
    def add_node(self) -> NodeProto | None:
        """The node that adds the bias."""
        return None if self.add is None else self.scope.node(self.add[0])

    @property
    def x(self) -> str:
        """Name of the activation, or of the indices, that goes in."""
        return str(self.node.input[nodes.data_position(self.node)])

    @property
    def y(self) -> str:
        """Name of what comes out."""
        return str((self.add_node or self.node).output[0])


@dataclass(frozen=True, eq=False)
class Layer:
    """Nodes of a model with one weight.

    Attributes:
        calls: its nodes, at least one, in the order of the graph.
        kind: the type of the nodes.
        weight: as the nodes read it; None where it is no tensor of the model.
        bias: the same.
        refusal: why it must be left alone; "" where it can be replaced.
    """

    calls: tuple[Call, ...]
    kind: str
    weight: Constant | None
    bias: Constant | None
    refusal: str

    @property
    def path(self) -> str:
        """Path of the first node."""
        return self.calls[0].path

    @cached_property
    def op(self) -> Op:
        """The op, whether or not it can be replaced.

        Raises:
            Refused: its nodes compute none, or its weight is not at hand.
        """
        if self.weight is None:
            raise Refused(self.refusal)
        bias = None if self.bias is None else self.bias.array()
        return nodes.read(self.calls[0].node, self.weight.array(), bias)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the numbers of the weight."""
        assert self.weight is not None
        dtype: np.dtype[np.generic] = np.dtype(
            helper.tensor_dtype_to_np_dtype(self.weight.tensor.data_type)
        )
        return dtype


def layers_of(model: ModelProto) -> tuple[Graphs, dict[str, Layer]]:
    """Return the scopes of a model and its layers by path, in the order of the graph."""
    graphs = Graphs(model)
    layers: dict[str, Layer] = {}
    claimed: dict[tuple[int, int], str] = {}
    candidates = [layer for layer in _candidates(graphs) if layer is not None]
    by_weight: dict[object, list[Layer]] = {}
    for layer in candidates:
        if not layer.refusal and layer.weight is not None:
            by_weight.setdefault(layer.weight.stored, []).append(layer)
    for layer in candidates:
        call = layer.calls[0]
        if (call.scope.number, call.index) in claimed:
            continue
        if not layer.refusal and layer.weight is not None:
            layer = _with_company(graphs, layer, by_weight[layer.weight.stored])
        layers[layer.path] = layer
        claimed |= {(c.scope.number, c.index): layer.path for c in layer.calls}
    layers |= _in_functions(model)
    return graphs, layers


def _candidates(graphs: Graphs) -> Iterator[Layer | None]:
    """Yield a layer for each node that is one, or is known not to be."""
    for scope, index, node in graphs.nodes():
        op, path = op_of(node), graphs.paths[scope.number, index]
        if op in nodes.KINDS:
            yield _layer(graphs, scope, index, node, path)
        elif op in _REASONS and (op != "Einsum" or _has_weight(graphs, scope, node)):
            reason = _REASONS[op].format(op=node.op_type)
            yield Layer((Call(scope, index, None, path),), op, None, None, reason)


def _layer(graphs: Graphs, scope: Scope, index: int, node: NodeProto, path: str) -> Layer | None:
    """Return the layer of a node; None for a product of activations or a look-up in one."""
    kind, position = op_of(node), nodes.weight_position(node)
    if len(node.input) <= position or not _is_layer(graphs, scope, node):
        return None
    alone = Call(scope, index, None, path)
    if kind == "MatMul" and not graphs.is_constant(scope, node.input[1]):
        reason = "its constant is on the left: it multiplies along another axis than the last"
        return Layer((alone,), kind, None, None, reason)
    weight = graphs.constant(scope, node.input[position])
    if weight is None:
        reason = graphs.why_not_constant(scope, node.input[position])
        return Layer((alone,), kind, None, None, reason)
    if not is_float(weight.tensor):
        return None if kind == "Gather" else Layer((alone,), kind, None, None, "it has no floats")
    if graphs.is_overridable(weight):
        reason = f"its weight {weight.name!r} is an input of the graph with a default"
        return Layer((alone,), kind, weight, None, reason)
    call, bias, reason = _bias(graphs, alone, weight)
    return Layer((call,), kind, weight, bias, reason)


def _is_layer(graphs: Graphs, scope: Scope, node: NodeProto) -> bool:
    kind = op_of(node)
    if kind == "Gather":
        table = graphs.constant(scope, node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        is_table = table is not None and len(table.tensor.dims) == 2 and axis == 0
        return is_table and not graphs.is_constant(scope, node.input[1])
    if kind == "MatMul":
        sides = [graphs.is_constant(scope, name) for name in node.input[:2]]
        return sides in ([True, False], [False, True])
    return True


def _has_weight(graphs: Graphs, scope: Scope, node: NodeProto) -> bool:
    constants = [graphs.constant(scope, name) for name in node.input]
    return any(c is not None and is_float(c.tensor) and len(c.tensor.dims) > 1 for c in constants)


def _bias(graphs: Graphs, call: Call, weight: Constant) -> tuple[Call, Constant | None, str]:
    """Return a call with the node that adds its bias, the bias, and why it cannot be replaced."""
    node, scope = call.node, call.scope
    if op_of(node) != "Gather" and len(node.input) > 2 and node.input[2]:
        bias = graphs.constant(scope, node.input[2])
        if bias is None or graphs.is_overridable(bias):
            return call, None, f"its bias {node.input[2]!r} is computed as the model runs"
        out = _outputs(node, weight)
        shape = bias.shape
        # Gemm adds anything that can be broadcast, a number for each row, too.
        fits = shape in ((out,), (1, out), (), (1,)) if op_of(node) == "Gemm" else shape == (out,)
        if not fits:
            return call, None, f"its bias has the shape {shape}; a number for each output fits"
        return call, bias, ""
    if op_of(node) in ("Conv", "ConvTranspose", "MatMul"):
        with_add = _added(graphs, call, weight)
        if with_add is not None:
            return *with_add, ""
    return call, None, ""


def _added(graphs: Graphs, call: Call, weight: Constant) -> tuple[Call, Constant] | None:
    """Return the call with the Add right behind it, where that adds a number to each channel."""
    scope, output = call.scope, call.node.output[0]
    uses = graphs.uses((scope.number, output))
    if len(uses) != 1 or uses[0].node is None or uses[0].scope is not scope:
        return None
    use: Use = uses[0]
    add = uses[0].node
    if op_of(add) != "Add" or len(add.input) != 2:
        return None
    position = 1 - use.position
    bias = graphs.constant(scope, add.input[position])
    if bias is None or graphs.is_overridable(bias) or not is_float(bias.tensor):
        return None
    out, axes = _outputs(call.node, weight), len(weight.shape) - 2
    shape = bias.shape
    # One with more axes than the output would give the output more of them.
    wanted = ((out,),) if axes == 0 else ((out, *(1,) * axes), (1, out, *(1,) * axes))
    if shape not in wanted:
        return None
    return Call(scope, call.index, (use.index or 0, position), call.path), bias


def _outputs(node: NodeProto, weight: Constant) -> int:
    """Return the number of output channels."""
    shape = weight.shape
    attributes = {a.name: a.i for a in node.attribute}
    kind = op_of(node)
    if kind == "Conv":
        return int(shape[0])
    if kind == "ConvTranspose":
        return int(shape[1] * attributes.get("group", 1))
    return int(shape[0] if kind == "Gemm" and attributes.get("transB", 0) else shape[-1])


def _with_company(graphs: Graphs, layer: Layer, others: list[Layer]) -> Layer:
    """Return a layer with all nodes that apply it; or refused, where something else reads it."""
    assert layer.weight is not None
    alike = [other for other in others if _signature(other) == _signature(layer)]
    nodes_of_layer = {(c.scope.number, c.index) for other in alike for c in other.calls}
    for use in graphs.readers(layer.weight.stored):
        if use.index is None:
            reason = f"its weight {layer.weight.name!r} is an output of a graph, too"
        elif (use.scope.number, use.index) not in nodes_of_layer:
            reader = graphs.paths[use.scope.number, use.index]
            reason = f"tied: its weight {layer.weight.name!r} is also read by {reader!r}"
        else:
            continue
        return Layer(layer.calls, layer.kind, layer.weight, layer.bias, reason)
    calls = tuple(call for other in alike for call in other.calls)
    looped = next((call.scope.looped for call in calls if call.scope.looped), "")
    if looped and len({call.scope.looped for call in calls}) > 1:
        reason = f"shared by the body of {looped} and the graph around it"
        return Layer(layer.calls, layer.kind, layer.weight, layer.bias, reason)
    return Layer(calls, layer.kind, layer.weight, layer.bias, "")


def _signature(layer: Layer) -> tuple[object, ...]:
    """Return what two nodes must have in common to be one layer."""
    call, weight, bias = layer.calls[0], layer.weight, layer.bias
    assert weight is not None
    attributes = sorted(a.SerializeToString(deterministic=True) for a in call.node.attribute)
    added = None if call.add is None else call.add[1]
    return (
        layer.kind,
        weight.stored,
        weight.permutations,
        None if bias is None else (bias.stored, bias.permutations),
        added is None,
        tuple(attributes),
    )


def _in_functions(model: ModelProto) -> Mapping[str, Layer]:
    """Return the nodes with weights in the functions of a model, all of which are left alone."""
    layers: dict[str, Layer] = {}
    for function in model.functions:
        for index, node in enumerate(function.node):
            if op_of(node) not in ("Conv", "ConvTranspose", "Gemm"):
                continue
            label = node.name or next(iter(node.output), str(index))
            path = f"{function.domain}.{function.name}.{label}".lstrip(".")
            reason = (
                f"in the function {function.name!r}, which may be called from several places; "
                "inline it with onnx.inliner.inline_local_functions()"
            )
            scope = Scope(-1, model.graph, "", None, f"function {function.name!r}")
            layers[path] = Layer(
                (Call(scope, index, None, path),), node.op_type, None, None, reason
            )
    return layers
