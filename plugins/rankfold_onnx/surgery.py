"""Stages put in the place of layers: nodes spliced in, tensors exchanged, the unused removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rankfold.errors import RankfoldError
from rankfold_onnx.graph import Constant, Graphs, Scope
from rankfold_onnx.layers import Call, Layer, layers_of
from rankfold_onnx.stages import Stages, X, Y

_INITIALIZERS = 4
"""Version of the format from which an initializer need not be an input of the graph. In older
models new tensors are constants of nodes."""


def replaced(model: ModelProto, stages: Mapping[str, Stages], *, inplace: bool) -> ModelProto:
    """Return a model with stages in place of layers.

    Args:
        model: the model.
        stages: by path of the layers.
        inplace: whether the model itself is changed.

    Raises:
        RankfoldError: it has no such layer; it is then unchanged.
    """
    new = ModelProto()
    new.CopyFrom(model)
    graphs, layers = layers_of(new)
    for path in stages:
        if path not in layers:
            raise RankfoldError(f"layer {path!r}: the model has none of that name")
    names = _Names(graphs)
    tensors: list[_Tensor] = []
    splices: list[_Splice] = []
    constants: list[Constant] = []
    for path, put in stages.items():
        layer = layers[path]
        stored = _tensors(graphs, layer, put, names)
        tensors += stored.values()
        renamed = {local: tensor.tensor.name for local, tensor in stored.items()}
        splices += [_splice(call, put, renamed, names) for call in layer.calls]
        constants += [constant for constant in (layer.weight, layer.bias) if constant is not None]
    gone = _spliced(splices) | _pruned(new, constants)
    # Stored last: what is put in front of all nodes moves their indices.
    for tensor in tensors:
        tensor.store()
    for scope in graphs.scopes:
        _forget(scope.graph, gone)
    if not inplace:
        return new
    model.CopyFrom(new)
    return model


class _Names:
    """Names that are free in all graphs of a model."""

    def __init__(self, graphs: Graphs) -> None:
        self._taken: set[str] = set()
        for scope in graphs.scopes:
            self._taken |= {*scope.producers, *scope.initializers, *scope.inputs, *scope.sparse}
        self._taken |= {node.name for _, _, node in graphs.nodes()}

    def new(self, name: str) -> str:
        """Return a name like that which nothing has."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor to be stored.

    Attributes:
        scope: whose graph holds it.
        tensor: with its name, that of an old tensor if it takes the place of one.
        in_node: whether a new one is stored in a node `Constant`.
    """

    scope: Scope
    tensor: TensorProto
    in_node: bool

    def store(self) -> None:
        """Put the tensor into the graph."""
        graph, tensor = self.scope.graph, self.tensor
        for old in graph.initializer:
            if old.name == tensor.name:
                old.CopyFrom(tensor)
                return
        node = helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
        for old_node in graph.node:
            if tensor.name in old_node.output:
                node.name = old_node.name
                old_node.CopyFrom(node)
                return
        if self.in_node:
            graph.node.insert(0, node)  # whoever reads it is behind
        else:
            graph.initializer.append(tensor)


@dataclass(frozen=True, eq=False)
class _Splice:
    """Nodes that take the place of those of one call.

    Attributes:
        scope: of the nodes.
        drop: indices of the nodes that go.
        nodes: that come in the place of the last of them.
    """

    scope: Scope
    drop: tuple[int, ...]
    nodes: tuple[NodeProto, ...]


def _tensors(graphs: Graphs, layer: Layer, put: Stages, names: _Names) -> dict[str, _Tensor]:
    """Return the tensors of a layer by their names in the stages."""
    weight, bias = layer.weight, layer.bias
    assert weight is not None
    old = graphs.model.ir_version < _INITIALIZERS
    stored = {}
    for local, array in put.arrays.items():
        is_weight = local.startswith("w")
        holder = weight if is_weight or bias is None else bias
        # Names stay where a tensor stays what it was: that of a layer that is only refilled, and
        # that of the bias, unless something else reads the old one.
        keeps = put.is_refill if is_weight else _is_alone(graphs, layer)
        end = local[1:] if is_weight else "bias"
        name = holder.name if keeps else names.new(f"{holder.name}.{end}")
        tensor = numpy_helper.from_array(array, name)
        stored[local] = _Tensor(holder.scope, tensor, holder.in_node or old)
    return stored


def _is_alone(graphs: Graphs, layer: Layer) -> bool:
    """Return whether nothing but the layer reads its bias."""
    assert layer.bias is not None
    places = {(c.scope.number, c.index if c.add is None else c.add[0]) for c in layer.calls}
    readers = graphs.readers(layer.bias.stored)
    return all((use.scope.number, use.index) in places for use in readers)


def _splice(call: Call, put: Stages, renamed: Mapping[str, str], names: _Names) -> _Splice:
    """Return stages in the place of one call of their layer, by the names of the model."""
    like, add = call.node, call.add_node
    values = {**renamed, X: call.x, Y: call.y}
    if put.is_refill and add is not None:  # what is between the two nodes keeps its name
        values[put.nodes[0].output[0]] = like.output[0]
    spliced = []
    for number, node in enumerate(put.nodes):
        new = NodeProto()
        new.CopyFrom(node)
        for output in node.output:
            if output not in values:
                values[output] = names.new(f"{call.y}.{output}")
        new.input[:] = [values[name] for name in node.input]
        new.output[:] = [values[name] for name in node.output]
        old = add if node.op_type == "Add" and add is not None else like
        keeps = put.is_refill or old is add
        new.name = old.name if keeps else names.new(f"{like.name or call.y}.{number}")
        new.doc_string = old.doc_string
        new.metadata_props.extend(old.metadata_props)
        spliced.append(new)
    drop = (call.index,) if call.add is None else (call.index, call.add[0])
    return _Splice(call.scope, drop, tuple(spliced))


def _spliced(splices: Iterable[_Splice]) -> set[str]:
    """Put nodes in place of others; return the names of values that are no longer there."""
    gone: set[str] = set()
    steps: dict[int, list[tuple[int, tuple[NodeProto, ...]]]] = {}
    graphs: dict[int, GraphProto] = {}
    for splice in splices:
        graph = splice.scope.graph
        gone |= {name for index in splice.drop for name in graph.node[index].output}
        last = max(splice.drop)
        graphs[splice.scope.number] = graph
        steps.setdefault(splice.scope.number, []).extend(
            (index, splice.nodes if index == last else ()) for index in splice.drop
        )
    for number, graph in graphs.items():
        # From the end to the beginning, so that the indices before it stay what they are.
        for index, nodes in sorted(steps[number], key=lambda step: -step[0]):
            del graph.node[index]
            for node in reversed(nodes):
                graph.node.insert(index, node)
            gone -= {name for node in nodes for name in node.output}
    return gone


def _pruned(model: ModelProto, constants: Iterable[Constant]) -> set[str]:
    """Remove tensors of layers that nothing reads any more; return their names."""
    gone: set[str] = set()
    left = {value for constant in constants for value in constant.values}
    while True:
        # What a removed node read may have had no other reader. The nodes that were put in hold no
        # graphs, so that scopes have the numbers they had.
        graphs = Graphs(model)
        dead = {value for value in left if not graphs.uses(value)}
        if not dead:
            return gone
        for number, name in dead:
            _remove(graphs.scopes[number].graph, name)
            gone.add(name)
        left -= dead


def _remove(graph: GraphProto, name: str) -> None:
    for items in (graph.initializer, graph.input):
        for index in reversed(range(len(items))):
            if items[index].name == name:
                del items[index]
    for index in reversed(range(len(graph.node))):
        if name in graph.node[index].output:
            del graph.node[index]


def _forget(graph: GraphProto, gone: set[str]) -> None:
    """Remove what a graph says of values that are no longer in it."""
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in gone:
            del graph.value_info[index]
    for index in reversed(range(len(graph.quantization_annotation))):
        if graph.quantization_annotation[index].tensor_name in gone:
            del graph.quantization_annotation[index]
