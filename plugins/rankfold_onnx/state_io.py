"""The tensors of a model as a safetensors file, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.storage.state_checks import check_alike, read_whole, renamed
from rankfold_onnx.graph import Graphs, attribute, is_float, op_of, size_of


def size(graphs: Graphs) -> int:
    """Return how many floating-point numbers the tensors of a model hold."""
    return sum(size_of(tensor) for tensor in tensors(graphs).values() if is_float(tensor))


def tensors(graphs: Graphs) -> dict[str, TensorProto]:
    """Return every tensor of a model by its name, with the path of its subgraph in front."""
    named: dict[str, TensorProto] = {}
    for scope in graphs.scopes:
        for tensor in scope.graph.initializer:
            named[f"{scope.prefix}{tensor.name}"] = tensor
        for node in scope.graph.node:
            value = attribute(node, "value") if op_of(node) == "Constant" else None
            if isinstance(value, TensorProto):
                named[f"{scope.prefix}{node.output[0]}"] = value
    return named


def save(graphs: Graphs, file: Path) -> None:
    """Write the tensors of a model, but for those of texts, which belong to its structure.

    Raises:
        RankfoldError: one is not in memory, or of a type that such a file does not hold.
        OSError: the file cannot be written.
    """
    arrays = {name: _array(name, tensor) for name, tensor in _numbers(graphs).items()}
    try:
        save_file(arrays, file)
    except (SafetensorError, KeyError, ValueError) as error:
        raise RankfoldError(f"the tensors of the model cannot be saved: {error}") from error


def load(graphs: Graphs, files: Sequence[Path]) -> None:
    """Fill the tensors of a model from files, after a check of all of them.

    Raises:
        RankfoldError: a file is damaged, or they do not hold just these; the model is then
            unchanged.
    """
    stored = read_whole(files, load_file)
    wanted = _numbers(graphs)
    arrays = renamed(files[0], stored, wanted)
    for name, tensor in wanted.items():
        old = _array(name, tensor)
        array = arrays[name]
        check_alike(files[0], name, (array.dtype, array.shape), (old.dtype, old.shape))
    for name, tensor in wanted.items():
        tensor.CopyFrom(numpy_helper.from_array(arrays[name], tensor.name))


def _numbers(graphs: Graphs) -> dict[str, TensorProto]:
    return {n: t for n, t in tensors(graphs).items() if t.data_type != TensorProto.STRING}


def _array(name: str, tensor: TensorProto) -> Array:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise RankfoldError(f"{name!r}: its values are in a file that is not loaded; use onnx.load")
    array: Array = np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
    return array
