"""Sessions of onnxruntime, and what is fed to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold.linalg import Array

_PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes that a serialized model may have: protobuf ends at 2 GiB."""


class NotRunError(RankfoldError):
    """Runtime cannot run a model, whatever the inputs: it lacks an operator for these types."""


class FailedError(RankfoldError):
    """Model fails on its inputs."""


def session(model: ModelProto, *, optimized: bool = True) -> onnxruntime.InferenceSession:
    """Return a session of a model on the CPU.

    Args:
        model: the model.
        optimized: whether nodes may be fused, as in use; parts of a graph that run once or twice
            are not worth it.

    Raises:
        NotRunError: onnxruntime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Threads that spin between two runs would take the cores from NumPy's products in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if model.ByteSize() > _PROTOBUF_LIMIT:
        raise NotRunError("the graph is larger than 2 GiB, more than onnxruntime takes from memory")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of classes that onnxruntime does not name
        let_through(error)
        raise NotRunError(f"onnxruntime cannot run the model: {told(error)}") from error


def run(
    running: onnxruntime.InferenceSession, outputs: Sequence[str] | None, feeds: Mapping[str, Any]
) -> list[Any]:
    """Return outputs of a session.

    Raises:
        FailedError: the model fails on these inputs.
    """
    try:
        results: list[Any] = running.run(None if outputs is None else list(outputs), dict(feeds))
    except Exception as error:  # of classes that onnxruntime does not name
        let_through(error)
        raise FailedError(f"the model fails with {told(error)}") from error
    return results


def feeds_of(model: ModelProto, inputs: Any) -> dict[str, Any]:
    """Return inputs by the names of the graph.

    Numbers are converted to the type that the graph wants among floats and among integers, but not
    from one to the other.

    Args:
        model: the model.
        inputs: an array, arrays in the order of the graph's inputs, or a mapping by their names.

    Raises:
        RankfoldError: one is missing, unknown or of another kind.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    wanted = {item.name: item for item in model.graph.input if item.name not in stored}
    optional = {item.name: item for item in model.graph.input if item.name in stored}
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    else:
        arrays = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
        if len(arrays) > len(wanted):
            raise RankfoldError(
                f"inputs: {len(arrays)} arrays for a graph with {len(wanted)} inputs: "
                f"{', '.join(wanted)}; give an array for each, of its shape, or a mapping by name"
            )
        named = dict(zip(wanted, arrays, strict=False))
    for name in wanted:
        if name not in named:
            raise RankfoldError(f"inputs: {name!r} is missing; the graph has {', '.join(wanted)}")
    feeds = {}
    for name, value in named.items():
        known = {**wanted, **optional}
        if name not in known:
            raise RankfoldError(f"inputs: the graph has no {name!r}; it has {', '.join(wanted)}")
        feeds[name] = _converted(known[name], value)
    return feeds


def _converted(item: ValueInfoProto, value: Any) -> Any:
    if not item.type.HasField("tensor_type"):
        return value
    array = np.asarray(value)
    dtype = helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    floats, integers = ((np.floating, np.floating), (np.integer, np.integer))
    alike = any(
        np.issubdtype(array.dtype, left) and np.issubdtype(dtype, right)
        for left, right in (floats, integers)
    )
    if not alike:
        raise RankfoldError(
            f"inputs: {item.name!r} is {array.dtype}, the graph wants {dtype}; convert it"
        )
    return np.ascontiguousarray(array.astype(dtype))


def part_of(model: ModelProto, graph: GraphProto) -> ModelProto:
    """Return a graph as a model, with the operators and functions of another one."""
    part = ModelProto(ir_version=max(model.ir_version, 4), graph=graph)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    return part


def typed(name: str, value: Any) -> ValueInfoProto:
    """Return the description of an input of any shape.

    Raises:
        NotRunError: it is no array: a sequence or a map.
    """
    if not isinstance(value, np.ndarray):
        raise NotRunError(f"the value {name!r} of the graph is no tensor; leave calibration= out")
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)


def as_float32(array: Array) -> Array:
    """Return an array of any float dtype as float32."""
    return np.ascontiguousarray(np.asarray(array).astype(np.float32))
