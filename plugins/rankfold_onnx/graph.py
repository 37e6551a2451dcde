"""Scopes, names and constants of an ONNX graph with its subgraphs.

A subgraph (the branch of an If, the body of a Loop or a Scan) sees the names of the graphs around
it. A name is assigned once within what can be seen, but sibling branches may use the same ones: a
value is known by its scope and its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from rankfold.errors import Refused
from rankfold.linalg import Array

BRANCHES = "If"
"""The op whose subgraphs run at most once in a pass, with the names around them."""
_STANDARD = ("", "ai.onnx")


def op_of(node: NodeProto) -> str:
    """Return the type of a node, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """Return the value of an attribute, lists as tuples and texts as str."""
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            if isinstance(value, bytes):
                return value.decode()
            return value if isinstance(value, (int, float, onnx.TensorProto)) else tuple(value)
    return default


@dataclass(frozen=True, eq=False)
class Scope:
    """A graph or a subgraph.

    Attributes:
        number: in the order in which scopes are met, 0 for the main graph.
        graph: as it stands in the model.
        prefix: of the paths of its nodes, "" for the main graph.
        parent: the scope around it.
        looped: the node, in words, whose body it is part of, where it may run any number of times.
        producers: by name, the index of the node that gives a value.
        initializers: by name, the index of an initializer.
        sparse: names of sparse initializers.
        inputs: names of its inputs.
    """

    number: int
    graph: GraphProto
    prefix: str
    parent: Scope | None
    looped: str
    producers: dict[str, int] = field(default_factory=dict)
    initializers: dict[str, int] = field(default_factory=dict)
    sparse: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)

    def owner(self, name: str) -> Scope | None:
        """Return the scope that a visible name belongs to; None for one that nobody defines."""
        scope: Scope | None = self
        while scope is not None:
            tables = (scope.producers, scope.initializers, scope.sparse, scope.inputs)
            if any(name in table for table in tables):
                return scope
            scope = scope.parent
        return None

    def node(self, index: int) -> NodeProto:
        """Return a node by its index."""
        node: NodeProto = self.graph.node[index]
        return node

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that gives a value of this very scope."""
        index = self.producers.get(name)
        return None if index is None else self.node(index)


Value: TypeAlias = tuple[int, str]
"""The number of a scope and a name in it."""


@dataclass(frozen=True, eq=False)
class Use:
    """A place where a value is read.

    Attributes:
        scope: of the reader.
        index: of the node in it; None where the value is an output of the graph.
        position: among the inputs of the node, or among the outputs of the graph.
    """

    scope: Scope
    index: int | None
    position: int

    @property
    def node(self) -> NodeProto | None:
        """The node that reads."""
        return None if self.index is None else self.scope.node(self.index)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of the model as some node reads it.

    Attributes:
        scope: where the tensor is stored.
        name: of the value that it is stored as.
        permutations: of its axes on the way to the reader, by nodes `Transpose`.
        values: every value on that way, the stored one included.
        in_node: whether a node `Constant` holds it, and not an initializer.
    """

    scope: Scope
    name: str
    permutations: tuple[tuple[int, ...] | None, ...]
    values: frozenset[Value]
    in_node: bool

    @property
    def tensor(self) -> TensorProto:
        """The tensor as it is stored."""
        if not self.in_node:
            stored: TensorProto = self.scope.graph.initializer[self.scope.initializers[self.name]]
            return stored
        node = self.scope.node(self.scope.producers[self.name])
        value = attribute(node, "value")
        assert isinstance(value, TensorProto)
        return value

    @property
    def stored(self) -> Value:
        """The stored value."""
        return self.scope.number, self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as the reader sees it."""
        shape = tuple(self.tensor.dims)
        for axes in self.permutations:
            order = range(len(shape))[::-1] if axes is None else axes
            shape = tuple(shape[axis] for axis in order)
        return shape

    def array(self) -> Array:
        """Return the numbers as the reader sees them.

        Raises:
            Refused: they are not in the model, or damaged.
        """
        tensor = self.tensor
        if tensor.data_location == TensorProto.EXTERNAL:
            raise Refused(
                f"the values of {self.name!r} are in a file that is not loaded; pass the path of "
                "the model, or load it with onnx.load()"
            )
        try:
            array: Array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise Refused(f"the tensor {self.name!r} is damaged: {error}") from error
        for axes in self.permutations:
            array = array.transpose(axes)
        return array


class Graphs:
    """The scopes of a model and who reads each of their values.

    Args:
        model: which must not change while this is in use.

    Attributes:
        model: as given.
        scopes: all of them, each before those within it.
        paths: by scope number and index of a node, its path in the model.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.scopes: list[Scope] = []
        self.paths: dict[tuple[int, int], str] = {}
        self._uses: dict[Value, list[Use]] = {}
        self._constant: dict[Value, bool] = {}
        self._taken: set[str] = set()
        self._enter(model.graph, "", None, "")
        for scope in self.scopes:
            self._note_uses(scope)

    def nodes(self) -> Iterator[tuple[Scope, int, NodeProto]]:
        """Yield every node, those of subgraphs behind the nodes that hold them."""
        for scope in self.scopes:
            for index, node in enumerate(scope.graph.node):
                yield scope, index, node

    def uses(self, value: Value) -> list[Use]:
        """Return where a value is read."""
        return self._uses.get(value, [])

    def readers(self, value: Value) -> list[Use]:
        """Return where a value is read in the end, through nodes that only pass it on."""
        ends: list[Use] = []
        for use in self.uses(value):
            node = use.node
            if node is not None and op_of(node) in ("Identity", "Transpose"):
                ends += self.readers((use.scope.number, node.output[0]))
            else:
                ends.append(use)
        return ends

    def constant(self, scope: Scope, name: str) -> Constant | None:
        """Return the tensor behind a name, through Identity and Transpose; None where none is."""
        permutations: list[tuple[int, ...] | None] = []
        values: set[Value] = set()
        while True:
            owner = scope.owner(name)
            if owner is None:
                return None
            values.add((owner.number, name))
            order = tuple(reversed(permutations))
            if name in owner.initializers:
                return Constant(owner, name, order, frozenset(values), in_node=False)
            node = owner.producer(name)
            if node is None:
                return None
            op = op_of(node)
            if op == "Constant" and isinstance(attribute(node, "value"), TensorProto):
                return Constant(owner, name, order, frozenset(values), in_node=True)
            if op not in ("Identity", "Transpose"):
                return None
            if op == "Transpose":
                axes = attribute(node, "perm")
                permutations.append(axes if isinstance(axes, tuple) else None)
            scope, name = owner, node.input[0]

    def is_constant(self, scope: Scope, name: str) -> bool:
        """Return whether a value depends on no input of the graph."""
        owner = scope.owner(name) if name else None
        if owner is None:
            return False
        key = (owner.number, name)
        if key not in self._constant:
            self._constant[key] = self._depends_on_nothing(owner, name)
        return self._constant[key]

    def is_overridable(self, constant: Constant) -> bool:
        """Return whether a caller of the model may give other values for a tensor.

        Before version 4 of the format every initializer was listed among the inputs, so that it
        means nothing there.
        """
        listed = not constant.in_node and constant.name in constant.scope.inputs
        return listed and self.model.ir_version >= 4

    def why_not_constant(self, scope: Scope, name: str) -> str:
        """Say why a value is no tensor of the model that could be replaced."""
        owner = scope.owner(name)
        if owner is None:
            return f"its weight {name!r} is not in the graph"
        if name in owner.sparse:
            return f"its weight {name!r} is sparse"
        node = owner.producer(name)
        if node is None:
            return f"its weight {name!r} is an input of the graph"
        op = op_of(node)
        if op in ("Identity", "Transpose"):
            return self.why_not_constant(owner, node.input[0])
        if op == "DequantizeLinear":
            return (
                f"quantized: its weight {name!r} comes from DequantizeLinear; compress the model "
                "before it is quantized"
            )
        if self.is_constant(owner, name):
            return (
                f"its weight {name!r} is computed from constants by {op}; fold constants first, "
                "with onnxruntime or onnxsim"
            )
        return f"its weight {name!r} is computed by {op} as the model runs"

    def _enter(self, graph: GraphProto, prefix: str, parent: Scope | None, looped: str) -> None:
        scope = Scope(len(self.scopes), graph, prefix, parent, looped)
        self.scopes.append(scope)
        scope.initializers.update((t.name, i) for i, t in enumerate(graph.initializer))
        scope.sparse.update(t.values.name for t in graph.sparse_initializer)
        scope.inputs.update(item.name for item in graph.input)
        names = [node.name for node in graph.node]
        for index, node in enumerate(graph.node):
            scope.producers.update(dict.fromkeys(filter(None, node.output), index))
            # The name of a node is for people: it may be missing, or that of several nodes. The
            # name of what it gives is always there and stands once in its graph.
            output = next(filter(None, node.output), node.op_type)
            name = node.name if names.count(node.name) == 1 and node.name else output
            self.paths[scope.number, index] = self._unique(f"{prefix}{name}")
        for index, node in enumerate(graph.node):
            for item in node.attribute:
                within = self.paths[scope.number, index]
                inner = looped or ("" if op_of(node) == BRANCHES else f"{op_of(node)} {within!r}")
                graphs = [item.g] if item.type == AttributeProto.GRAPH else list(item.graphs)
                for number, subgraph in enumerate(graphs):
                    end = f"{item.name}{number or ''}"
                    self._enter(subgraph, f"{within}.{end}.", scope, inner)

    def _unique(self, path: str) -> str:
        while path in self._taken:
            path += "_"
        self._taken.add(path)
        return path

    def _note_uses(self, scope: Scope) -> None:
        for index, node in enumerate(scope.graph.node):
            for position, name in enumerate(node.input):
                self._note(scope, name, Use(scope, index, position))
        for position, output in enumerate(scope.graph.output):
            self._note(scope, output.name, Use(scope, None, position))

    def _note(self, scope: Scope, name: str, use: Use) -> None:
        owner = scope.owner(name) if name else None
        if owner is not None:
            self._uses.setdefault((owner.number, name), []).append(use)

    def _depends_on_nothing(self, owner: Scope, name: str) -> bool:
        if name in owner.initializers or name in owner.sparse:
            return True
        node = owner.producer(name)
        if node is None or op_of(node).startswith(("Random", "Multinomial", "Bernoulli")):
            return False
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            return False
        return all(self.is_constant(owner, read) for read in node.input if read)


def is_float(tensor: TensorProto) -> bool:
    """Return whether a tensor holds floating-point numbers that a layer may have."""
    return tensor.data_type in (
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
    )


def size_of(tensor: TensorProto) -> int:
    """Return how many numbers a tensor holds."""
    return int(np.prod(tensor.dims, dtype=np.int64))
