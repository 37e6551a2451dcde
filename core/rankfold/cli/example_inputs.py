"""Example inputs and calibration data from the command line: shapes, files, or functions."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rankfold.cli.arguments import called, imported, names_code
from rankfold.errors import RankfoldError
from rankfold.linalg import Array

_BATCH = 16
"""Examples that a model is run on at a time: enough for its products, few for its memory."""
_MOST = 2**30
"""Numbers of an array that is made of a shape alone: 4 GiB in float32, more than any example."""
_SHAPE = re.compile(r"(?:(\w+)=)?([0-9]+(?:,[0-9]+)*)(?::([a-z]+[0-9]*))?")
_POSITION = re.compile(r"(?:arr_)?([0-9]+)")
"""A name that says a place among the arguments: numpy.savez(file, a, b) writes arr_0 and arr_1."""


def example_inputs(
    inputs: Path | None, calibration: Path | None
) -> tuple[dict[str, Array] | None, list[dict[str, Array]] | None]:
    """Return example inputs, and batches of calibration data as large as these.

    Without example inputs the first of the calibration data serves, and batches have 16 examples.

    Args:
        inputs: an .npz or .safetensors file of inputs by name; None for none.
        calibration: such a file with the examples along the first axes of the arrays; arrays of
            another length, such as numbers, belong to every batch.

    Raises:
        RankfoldError: a file cannot be read.
    """
    example = None if inputs is None else _arrays(inputs)
    if calibration is None:
        return example, None
    arrays = _arrays(calibration)
    count = max((len(array) for array in arrays.values() if array.ndim), default=0)
    if not count:
        raise RankfoldError(f"calibration {str(calibration)!r} has no examples")
    lengths = [len(array) for array in (example or {}).values() if array.ndim]
    size = _BATCH if example is None else max([1, *lengths])

    def part(first: int, size: int) -> dict[str, Array]:
        return {
            name: array[first : first + size] if array.ndim and len(array) == count else array
            for name, array in arrays.items()
        }

    # The last examples are left out where they do not fill a batch: a model may take no smaller.
    whole = max(size, count - count % size) if size <= count else count
    batches = [part(first, size) for first in range(0, whole, size)]
    return (part(0, 1) if example is None else example), batches


def model_inputs(
    inputs: str | list[int] | Mapping[str, Any] | None,
    calibration: str | None,
    tensor: Callable[[Array], Any],
) -> tuple[Any, Any]:
    """Return example inputs of a model that a factory makes, and batches of calibration data.

    One array is the first argument of the model, several are its arguments by their names, or by
    their places where they are called 0, 1 or arr_0, arr_1.

    Args:
        inputs: a shape or shapes by name, as text or from a recipe; a file; or
            package.module:inputs, a function without arguments or an object.
        calibration: a file, or package.module:batches; None for none.
        tensor: makes what the model takes of an array.

    Raises:
        RankfoldError: a text is neither, or a file cannot be read.
    """
    file = Path(inputs) if isinstance(inputs, str) and _is_file(inputs) else None
    example: Any = None
    if file is None and inputs is not None:
        if isinstance(inputs, str) and names_code(inputs):
            example = _of_code(inputs, "inputs")
        else:
            example = _arguments(_of_shapes(inputs), tensor)
    if calibration is not None and not _is_file(calibration):
        if not names_code(calibration):
            raise RankfoldError(
                f"calibration {calibration!r}; name an .npz or .safetensors file, or "
                "package.module:batches"
            )
        if file is not None:
            example = _arguments(_arrays(file), tensor)
        return example, _of_code(calibration, "batches")
    arrays, batches = example_inputs(file, None if calibration is None else Path(calibration))
    if example is None and arrays is not None:
        example = _arguments(arrays, tensor)
    return example, None if batches is None else [_arguments(batch, tensor) for batch in batches]


def _is_file(text: str) -> bool:
    return Path(text).suffix.lower() in (".npz", ".safetensors")


def _of_code(text: str, what: str) -> Any:
    value = imported(text, what)
    return called(text, what) if callable(value) else value


def _arguments(arrays: Mapping[str, Array], tensor: Callable[[Array], Any]) -> Any:
    """Return arguments of a model: the only one, those by place, or those by name."""
    if len(arrays) == 1:
        return tensor(next(iter(arrays.values())))
    places = {name: _POSITION.fullmatch(name) for name in arrays}
    if all(places.values()):
        ordered = sorted(arrays, key=lambda name: int(places[name][1]))  # type: ignore[index]
        return tuple(tensor(arrays[name]) for name in ordered)
    return {name: tensor(array) for name, array in arrays.items()}


def _of_shapes(shapes: str | list[int] | Mapping[str, Any]) -> dict[str, Array]:
    """Return an array for each shape: random numbers, zeros for integers."""
    if isinstance(shapes, Mapping):
        texts = [f"{name}={_shape_text(shape)}" for name, shape in shapes.items()]
    else:
        texts = _shape_text(shapes).split()
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for index, text in enumerate(texts):
        parts = _SHAPE.fullmatch(text)
        try:
            if parts is None:
                raise TypeError
            name, sizes, kind = parts.groups()
            dtype = np.dtype(kind or "float32")
            shape = tuple(map(int, sizes.split(",")))
            if math.prod(shape) > _MOST:
                raise TypeError
        except (TypeError, ValueError):
            raise RankfoldError(
                f"inputs {text!r}; write a shape as 1,3,224,224, with a type as 1,77:int64, with "
                "names as 'ids=1,77:int64 mask=1,77:int64', or name a file or "
                "package.module:inputs"
            ) from None
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        arrays[name or str(index)] = drawn.astype(dtype)
    return arrays


def _shape_text(shape: Any) -> str:
    return ",".join(map(str, shape)) if isinstance(shape, list) else str(shape)


def _arrays(file: Path) -> dict[str, Array]:
    try:
        arrays = load_file(file) if file.suffix.lower() == ".safetensors" else _npz(file)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        kind = "a safetensors" if file.suffix.lower() == ".safetensors" else "an .npz"
        raise RankfoldError(f"{str(file)!r} cannot be read as {kind} file: {error}") from None
    if not arrays:
        raise RankfoldError(f"{str(file)!r} holds no array")
    return arrays


def _npz(file: Path) -> dict[str, Array]:
    stored = np.load(file, allow_pickle=False)
    if isinstance(stored, np.ndarray):
        raise ValueError("it holds one array without a name; use numpy.savez(file, x=...)")
    with stored:
        return {name: stored[name] for name in stored.files}
