"""A model as one list of nodes, the branches that its conditions take among them.

onnxruntime gives values of the main graph alone. So an If that has layers in its branches is
replaced by the branch that is taken on given inputs; the names within get the path of the branch in
front, for the other branch may use the same ones. Loops, and branches without layers, stay nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from rankfold.linalg import Array
from rankfold_onnx import runtime
from rankfold_onnx.graph import BRANCHES, Graphs, Scope, attribute, op_of
from rankfold_onnx.layers import Layer


@dataclass(frozen=True)
class FlatCall:
    """One use of a layer in a flat graph.

    Attributes:
        path: of the layer.
        nodes: indices of its nodes, in order.
        x: name of what goes in.
        y: name of what comes out.
    """

    path: str
    nodes: tuple[int, ...]
    x: str
    y: str


@dataclass(eq=False)
class FlatGraph:
    """Nodes, constants and calls of layers, in the order of execution.

    Attributes:
        model: as given.
        nodes: without those that hold constants.
        constants: tensors by name.
        calls: of the layers that are run, in order.
        taken: the branches that were taken.
    """

    model: ModelProto
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    calls: list[FlatCall] = field(default_factory=list)
    taken: tuple[str, ...] = ()

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of the model."""
        return [output.name for output in self.model.graph.output]

    def producers(self) -> dict[str, int]:
        """Return by name the index of the node that gives a value."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    def needed(self, outputs: Iterable[str], known: Iterable[str] = ()) -> list[int]:
        """Return the nodes that values depend on, without those behind values that are known."""
        producers, stops, chosen = self.producers(), set(known), set()
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            index = producers.get(name)
            if name in stops or index is None or index in chosen:
                continue
            chosen.add(index)
            waiting += names_read(self.nodes[index])
        return sorted(chosen)

    def part(
        self,
        nodes: Sequence[NodeProto],
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[str],
    ) -> ModelProto:
        """Return nodes as a model, with the constants that they read."""
        read = dict.fromkeys(name for node in nodes for name in names_read(node))
        graph = GraphProto(name="part")
        graph.node.extend(nodes)
        graph.input.extend(inputs)
        fed = {item.name for item in inputs}
        for name in dict.fromkeys([*read, *outputs]):
            if name in self.constants and name not in fed:
                tensor = graph.initializer.add()
                tensor.CopyFrom(self.constants[name])
                tensor.name = name
        graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        return runtime.part_of(self.model, graph)


def names_read(node: NodeProto) -> list[str]:
    """Return the names that a node reads, those that its subgraphs take from around them too."""
    names = [name for name in node.input if name]
    for graph in _graphs_of(node):
        inner = {name for n in graph.node for name in n.output}
        inner |= {t.name for t in graph.initializer} | {item.name for item in graph.input}
        read = [name for n in graph.node for name in names_read(n)]
        read += [output.name for output in graph.output]
        names += [name for name in read if name not in inner]
    return names


def flattened(
    graphs: Graphs,
    layers: Mapping[str, Layer],
    feeds: Mapping[str, Array] | None,
    *,
    condition: bool = True,
) -> FlatGraph:
    """Return a model as it runs on inputs.

    Args:
        graphs: of the model.
        layers: of the model.
        feeds: inputs by name, which decide on the branches; None without.
        condition: what every condition is taken to be without inputs.

    Raises:
        RankfoldError: the model fails on them.
    """
    flat = FlatGraph(graphs.model)
    _Flattening(graphs, layers, flat, feeds, condition).enter(graphs.scopes[0], {})
    return flat


class _Flattening:
    def __init__(
        self,
        graphs: Graphs,
        layers: Mapping[str, Layer],
        flat: FlatGraph,
        feeds: Mapping[str, Array] | None,
        condition: bool,
    ) -> None:
        self._condition = condition
        self._graphs = graphs
        self._flat = flat
        self._feeds = feeds
        self._calls = {
            (call.scope.number, index): (layer, call)
            for layer in layers.values()
            for call in layer.calls
            if call.scope.number >= 0
            for index in ((call.index,) if call.add is None else (call.index, call.add[0]))
        }
        self._begun: dict[tuple[int, int], int] = {}
        # Scopes with layers in them, and those around these.
        self._open: set[int] = set()
        for number, _ in self._calls:
            scope: Scope | None = graphs.scopes[number]
            while scope is not None:
                self._open.add(scope.number)
                scope = scope.parent
        flat.constants.update((t.name, t) for t in graphs.scopes[0].graph.initializer)

    def enter(self, scope: Scope, names: dict[str, str]) -> None:
        """Add the nodes of a scope, whose names are called otherwise in the flat graph."""
        for index, node in enumerate(scope.graph.node):
            value = attribute(node, "value") if op_of(node) == "Constant" else None
            if isinstance(value, TensorProto):
                self._flat.constants[names.get(node.output[0], node.output[0])] = value
                continue
            branches = self._branches(scope, index) if op_of(node) == BRANCHES else {}
            if any(inner.number in self._open for inner in branches.values()):
                self._branch(node, branches, names)
                continue
            self._flat.nodes.append(renamed(node, names))
            self._note_call(scope, index, names)

    def _note_call(self, scope: Scope, index: int, names: Mapping[str, str]) -> None:
        known = self._calls.get((scope.number, index))
        if known is None:
            return
        layer, call = known
        position = len(self._flat.nodes) - 1
        key = (scope.number, call.index)
        if call.add is not None and index == call.index:
            self._begun[key] = position
            return
        at = (position,) if call.add is None else (self._begun[key], position)
        has_data = layer.weight is not None
        x = call.x if has_data else ""
        y = call.y if has_data else ""
        self._flat.calls.append(FlatCall(layer.path, at, names.get(x, x), names.get(y, y)))

    def _branches(self, scope: Scope, index: int) -> dict[str, Scope]:
        path = self._graphs.paths[scope.number, index]
        prefixes = {f"{path}.{name}.": name for name in ("then_branch", "else_branch")}
        return {
            prefixes[inner.prefix]: inner
            for inner in self._graphs.scopes
            if inner.prefix in prefixes
        }

    def _branch(
        self, node: NodeProto, branches: Mapping[str, Scope], names: dict[str, str]
    ) -> None:
        condition = names.get(node.input[0], node.input[0])
        inner = branches["then_branch" if self._is_true(condition) else "else_branch"]
        self._flat.taken += (inner.prefix,)
        graph = inner.graph
        defined = {name for n in graph.node for name in n.output if name}
        defined |= {t.name for t in graph.initializer}
        within = {**names, **{name: f"{inner.prefix}{name}" for name in defined}}
        self._flat.constants.update((within[t.name], t) for t in graph.initializer)
        self.enter(inner, within)
        for result, output in zip(graph.output, node.output, strict=True):
            if output:
                source = within.get(result.name, result.name)
                target = names.get(output, output)
                self._flat.nodes.append(helper.make_node("Identity", [source], [target]))

    def _is_true(self, condition: str) -> bool:
        if self._feeds is None:
            return self._condition
        flat = self._flat
        nodes = [flat.nodes[index] for index in flat.needed([condition])]
        wanted = {name for node in nodes for name in names_read(node)} | {condition}
        inputs = [item for item in flat.model.graph.input if item.name in wanted & set(self._feeds)]
        if condition in {item.name for item in inputs}:
            return bool(self._feeds[condition])
        part = runtime.session(flat.part(nodes, inputs, [condition]), optimized=False)
        feeds = {item.name: self._feeds[item.name] for item in inputs}
        (value,) = runtime.run(part, [condition], feeds)
        return bool(value.item() if hasattr(value, "item") else value)


def renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """Return a copy of a node by other names, in what its subgraphs take from around them too."""
    new = NodeProto()
    new.CopyFrom(node)
    if names:
        new.input[:] = [names.get(name, name) for name in node.input]
        new.output[:] = [names.get(name, name) for name in node.output]
        for graph in _graphs_of(new):
            _rename_captured(graph, names)
    return new


def _rename_captured(graph: GraphProto, names: Mapping[str, str]) -> None:
    inner = {name for n in graph.node for name in n.output}
    inner |= {t.name for t in graph.initializer} | {item.name for item in graph.input}
    outer = {name: new for name, new in names.items() if name not in inner}
    for node in graph.node:
        node.input[:] = [outer.get(name, name) for name in node.input]
        for subgraph in _graphs_of(node):
            _rename_captured(subgraph, outer)
    for output in graph.output:
        output.name = outer.get(output.name, output.name)


def _graphs_of(node: NodeProto) -> Iterable[GraphProto]:
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.g
        elif item.type == AttributeProto.GRAPHS:
            yield from item.graphs
