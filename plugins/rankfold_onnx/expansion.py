"""Dense layers in the place of the chains of a compressed graph, and of layers refitted in it.

A chain begins and ends at the values that its layer has in the original, and everything around it
is as there. So the result is the original with other numbers, under the names that it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Embedding, Op
from rankfold.ops.reference import composed
from rankfold_onnx import stages, state_io, surgery
from rankfold_onnx.graph import Graphs, op_of
from rankfold_onnx.layers import Call, Layer, layers_of

_Stage = tuple[Layer, Call, bool]
"""A layer of a compressed graph, a call of it, and whether the Add that is its bias is left out."""


def expanded(model: ModelProto, small: ModelProto, paths: Sequence[str]) -> ModelProto:
    """Return the original with the numbers of its compressed form.

    Args:
        model: the original.
        small: its compressed form.
        paths: of the layers that are chains in it.

    Raises:
        Refused: something else than its chain stands in the place of a layer, or the graphs differ
            in more than chains.
    """
    graphs, layers = layers_of(model)
    chains = _Chains(small)
    refitted = [p for p, layer in layers.items() if p not in paths and chains.rewrite(layer)]
    dense = {path: chains.layer(layers[path]) for path in (*paths, *refitted)}
    changed = [layers[path] for path in dense]
    _check_rest(graphs, changed, chains)
    new = ModelProto()
    new.CopyFrom(model)
    # Their tensors have other shapes under the same names where a bias is spread over the outputs
    # or a weight transposed; they get their numbers below.
    tensors = [t for layer in changed for t in (layer.weight, layer.bias) if t is not None]
    reshaped = {f"{tensor.scope.prefix}{tensor.name}" for tensor in tensors}
    _refill(state_io.tensors(Graphs(new)), state_io.tensors(chains.graphs), reshaped)
    refills = {path: stages.staged(model, layers[path], (op,)) for path, op in dense.items()}
    surgery.replaced(new, refills, inplace=True)
    return new


class _Chains:
    """The chains of a compressed graph.

    Args:
        small: the graph.

    Attributes:
        graphs: its scopes.
        within: scope numbers and indices of the nodes of all chains that were asked for.
    """

    def __init__(self, small: ModelProto) -> None:
        self.graphs, layers = layers_of(small)
        self.within: set[tuple[int, int]] = set()
        self._stages: dict[tuple[int, str], _Stage] = {}
        for layer in layers.values():
            for call in layer.calls:
                # An Add behind a chain may be none of its own, where the layer had no bias.
                self._stages[call.scope.number, call.node.output[0]] = layer, call, True
                self._stages[call.scope.number, call.y] = layer, call, False

    def rewrite(self, layer: Layer) -> bool:
        """Return whether a layer that stays has been refitted: other nodes compute the same op.

        Attributes that were left to their defaults, or factors of a Gemm, are no longer so then.
        """
        return not layer.refusal and any(self._rewrites(layer, call) for call in layer.calls)

    def _rewrites(self, layer: Layer, call: Call) -> bool:
        other, new, _ = self._stages.get((call.scope.number, call.y), (layer, call, False))
        if other.refusal or new.x != call.x or _nodes_of(new) == _nodes_of(call):
            return False
        return type(other.op) is type(layer.op) and _geometry(other.op) == _geometry(layer.op)

    def layer(self, layer: Layer) -> Op:
        """Return a layer of the original with the weight and bias of its chain.

        Raises:
            Refused: no chain stands in its place.
        """
        first, *others = (self._chain(layer, call) for call in layer.calls)
        if any([stage[0] for stage in other] != [stage[0] for stage in first] for other in others):
            raise Refused(f"layer {layer.path!r}: its calls have different chains")
        ops = []
        for stage, call, without_bias in first:
            if stage.refusal and stage.weight is None:
                raise Refused(f"layer {layer.path!r}: {call.path!r} in its chain: {stage.refusal}")
            op = stage.op
            if without_bias and call.add is not None and not isinstance(op, Embedding):
                op = replace(op, bias=None)
            ops.append(op)
        try:
            return composed(layer.op, tuple(ops))
        except RankfoldError as error:
            raise Refused(f"layer {layer.path!r}: {error}") from None

    def _chain(self, layer: Layer, call: Call) -> list[_Stage]:
        """Return the stages from what goes into a call to what comes out, and note their nodes."""
        number, value = call.scope.number, call.y
        chain: list[_Stage] = []
        while value != call.x:
            stage = self._stages.get((number, value))
            read_elsewhere = chain and len(self.graphs.uses((number, value))) != 1
            if stage is None or read_elsewhere:
                why = "is read elsewhere, too" if stage else "comes from no stage of a chain"
                raise Refused(f"layer {layer.path!r}: what stands in its place: {value!r} {why}")
            chain.insert(0, stage)
            _, inner, without_bias = stage
            self.within.add((number, inner.index))
            if inner.add is not None and not without_bias:
                self.within.add((number, inner.add[0]))
            value = inner.x
        return chain


def _check_rest(graphs: Graphs, layers: Sequence[Layer], chains: _Chains) -> None:
    """Check that the graphs are the same but for chains.

    Raises:
        Refused: one has a node that the other has not.
    """
    calls = [call for layer in layers for call in layer.calls]
    within = {(call.scope.number, call.index) for call in calls}
    within |= {(call.scope.number, call.add[0]) for call in calls if call.add is not None}
    nodes = _described(graphs, within), _described(chains.graphs, chains.within)
    for path in nodes[0].keys() ^ nodes[1].keys():
        where = "only in the original" if path in nodes[0] else "only in the compressed graph"
        raise Refused(f"the graphs differ in more than chains: {path[1]!r} is {where}")
    for path, node in nodes[0].items():
        if node != nodes[1][path]:
            raise Refused(f"the graphs differ in more than chains: {path[1]!r} is not the same")


def _described(
    graphs: Graphs, within: set[tuple[int, int]]
) -> dict[tuple[int, str], tuple[object, ...]]:
    """Return the nodes that are not within layers or chains, by what they give."""
    nodes = {}
    for scope, index, node in graphs.nodes():
        output = next(filter(None, node.output), "")
        # What depends on no input may be on its way to a weight that is no longer there.
        if (scope.number, index) not in within and not graphs.is_constant(scope, output):
            nodes[scope.number, output] = _signature(node)
    return nodes


def _signature(node: NodeProto) -> tuple[object, ...]:
    attributes = sorted(
        a.SerializeToString(deterministic=True)
        for a in node.attribute
        # Subgraphs are scopes of their own.
        if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    )
    return op_of(node), tuple(node.input), tuple(node.output), tuple(attributes)


def _nodes_of(call: Call) -> list[tuple[object, ...]]:
    return [_signature(node) for node in (call.node, call.add_node) if node is not None]


def _geometry(op: Op) -> dict[str, object]:
    """Return the fields of an op that are no arrays."""
    return {name: value for name, value in vars(op).items() if name not in ("weight", "bias")}


def _refill(
    tensors: dict[str, TensorProto], others: dict[str, TensorProto], reshaped: set[str]
) -> None:
    """Give tensors the numbers of those of the same names.

    Args:
        tensors: of the original.
        others: of the compressed graph.
        reshaped: names of tensors that may have another shape, and stay as they are then.

    Raises:
        Refused: one has another type or shape.
    """
    for name in tensors.keys() & others.keys():
        tensor, other = tensors[name], others[name]
        if tensor.data_type != other.data_type or list(tensor.dims) != list(other.dims):
            if name in reshaped:
                continue
            raise Refused(f"the graphs differ in more than chains: {name!r} has another shape")
        tensor.CopyFrom(other)
