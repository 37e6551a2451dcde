"""Find the layers whose output is an output of the model, by going back from the outputs."""

from __future__ import annotations

from rankfold_onnx.flat_graph import FlatGraph
from rankfold_onnx.graph import op_of

_SHAPES = frozenset(
    (
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "Split",
        "Pad",
        "Expand",
        "Tile",
        "Cast",
        "DepthToSpace",
        "SpaceToDepth",
        "Concat",
        "ArgMax",
        "ArgMin",
        "TopK",
        "Resize",
        "Upsample",
    )
)
"""Nodes that move numbers about, or pick some of them."""
_VALUES = frozenset(
    (
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Softmax",
        "LogSoftmax",
        "Hardmax",
        "Softplus",
        "Softsign",
        "Gelu",
        "Clip",
        "Exp",
        "Log",
        "Sqrt",
        "Abs",
        "Neg",
        "Erf",
        "Floor",
        "Ceil",
        "Round",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Min",
        "Max",
        "BatchNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "AveragePool",
        "MaxPool",
        "Dropout",
    )
)
"""Nodes that scale, shift or squash numbers one by one, or with constants."""


def output_layers(flat: FlatGraph) -> set[str]:
    """Return the paths of the layers whose output is an output of the model.

    An output depends on no other activation, and meets no further weights on its way.
    """
    producers = flat.producers()
    calls = {index: call.path for call in flat.calls for index in call.nodes}
    varying = _varying(flat)
    paths: set[str] = set()
    waiting, seen = list(flat.outputs), set()
    while waiting:
        name = waiting.pop()
        index = producers.get(name)
        if name in seen or index is None:
            continue
        seen.add(name)
        if index in calls:
            paths.add(calls[index])
            continue
        node = flat.nodes[index]
        op = op_of(node)
        # Of nodes that pick or move numbers the first input has them; the others say where.
        if op == "Concat":
            waiting += node.input
        elif op in _SHAPES:
            waiting.append(node.input[0])
        elif op in _VALUES:
            activations = [value for value in node.input if value in varying]
            if len(set(activations)) == 1:
                waiting += activations[:1]
    return paths


def _varying(flat: FlatGraph) -> set[str]:
    """Return the values that depend on activations; shapes and what is computed of them do not."""
    varying = {item.name for item in flat.model.graph.input}
    for node in flat.nodes:
        if op_of(node) not in ("Shape", "Size") and any(name in varying for name in node.input):
            varying.update(node.output)
    return varying
