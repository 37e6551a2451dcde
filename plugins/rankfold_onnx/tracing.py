"""Shapes of the inputs of all layers, by a run on example inputs or else by shape inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import GraphProto, ModelProto, helper, shape_inference

from rankfold.errors import RankfoldError, Refused
from rankfold.faults import told
from rankfold.linalg import Array
from rankfold.ops import Extent, macs
from rankfold.plugins import Trace
from rankfold_onnx import runtime
from rankfold_onnx.flat_graph import FlatGraph, flattened
from rankfold_onnx.graph import Graphs, size_of
from rankfold_onnx.layers import Layer
from rankfold_onnx.output_layers import output_layers

_SHAPE = "rankfold.shape."
_SHAPE_TENSOR = 64
"""Numbers up to which a tensor may be one that shapes are computed from."""


def trace(graphs: Graphs, layers: Mapping[str, Layer], inputs: Any) -> Trace:
    """Return what one pass of a model shows.

    Raises:
        RankfoldError: the model fails on the inputs.
    """
    feeds = runtime.feeds_of(graphs.model, inputs)
    try:
        flat = flattened(graphs, layers, feeds)
        shapes = _shapes_in_run(flat, feeds)
    except runtime.NotRunError:
        # Types that onnxruntime has no kernels for, such as convolutions in float64.
        flat = flattened(graphs, layers, None)
        shapes = _inferred_shapes(flat, feeds)
    except RankfoldError as error:
        raise RankfoldError(f"inputs: {error}") from error
    extents: dict[str, tuple[Extent, ...]] = dict.fromkeys(layers, ())
    uncounted = {path for path, layer in layers.items() if layer.calls[0].scope.looped}
    for call in flat.calls:
        layer = layers[call.path]
        shape = shapes.get(call.x)
        if layer.weight is None or shape is None:
            uncounted.add(call.path)
        else:
            extents[call.path] += (_extent(layer, shape),)
    counts = {}
    for path in layers:
        count = _macs(layers[path], extents[path])
        if layers[path].refusal and count is not None and path not in uncounted:
            counts[path] = count
        elif count is None and extents[path]:
            uncounted.add(path)
    # Without a count of its calls, a layer of which nothing is known has no extents at all.
    known = {path: seen for path, seen in extents.items() if path not in uncounted}
    return Trace(
        known,
        {},
        macs=counts,
        outputs=frozenset(output_layers(flat)),
        uncounted=frozenset(uncounted),
    )


def _extent(layer: Layer, shape: tuple[int, ...]) -> Extent:
    if layer.kind == "Gather":
        return shape
    if layer.kind in ("Gemm", "MatMul"):
        return shape[:-1]
    return (shape[0], *shape[2:])


def _macs(layer: Layer, extents: tuple[Extent, ...]) -> int | None:
    """Return the multiply-accumulates of all calls; None for a layer that is no op."""
    try:
        return sum(macs(layer.op, extent) for extent in extents)
    except (Refused, RankfoldError):
        return None


def _shapes_in_run(flat: FlatGraph, feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Run the model, with the shapes of values among its outputs in place of the values."""
    wanted = list(dict.fromkeys(call.x for call in flat.calls if call.x))
    probes = [helper.make_node("Shape", [name], [_SHAPE + name]) for name in wanted]
    inputs = [item for item in flat.model.graph.input if item.name in feeds]
    model = flat.part(
        [*flat.nodes, *probes], inputs, [*(_SHAPE + name for name in wanted), *flat.outputs]
    )
    running = runtime.session(model)
    outputs = runtime.run(running, [_SHAPE + name for name in wanted] or None, feeds)
    return {
        name: tuple(int(size) for size in shape)
        for name, shape in zip(wanted, outputs, strict=False)
    }


def _inferred_shapes(flat: FlatGraph, feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    inputs = [
        helper.make_tensor_value_info(
            item.name, item.type.tensor_type.elem_type, list(feeds[item.name].shape)
        )
        for item in flat.model.graph.input
        if item.name in feeds
    ]
    # Of weights the shapes are enough: with their values, a model beyond 2 GiB cannot be inferred.
    inputs += [
        helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        for name, tensor in flat.constants.items()
        if size_of(tensor) > _SHAPE_TENSOR and name not in feeds
    ]
    model = flat.part(flat.nodes, inputs, flat.outputs)
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise RankfoldError(f"inputs: the model fails with {told(error)}") from error
    return _static(inferred)


def _static(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes that are known in full."""
    graph: GraphProto = model.graph
    shapes = {}
    for item in (*graph.value_info, *graph.input, *graph.output):
        kind = item.type.tensor_type
        sizes = [d.dim_value for d in kind.shape.dim]
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[item.name] = tuple(sizes)
    return shapes
