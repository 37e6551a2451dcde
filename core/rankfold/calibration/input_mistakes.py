"""Words for what inputs on which a model fails may have been mistaken for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rankfold.faults import short, told
from rankfold.ops.geometry import is_int


def told_of(error: BaseException, inputs: Any, arrays: str = "") -> str:
    """Return the error of a model on inputs in a line; where these are odd, what to give instead.

    Args:
        error: what the model raised.
        inputs: what it was called with.
        arrays: how arrays of NumPy become such as the framework takes; "" where it takes them.
    """
    mistake = _mistake(inputs, arrays)
    # A framework's own text lists every signature of the operation that came first, and says
    # nothing of the inputs of the model.
    return f"{type(error).__name__}: {mistake}" if mistake else told(error)


def taken_as_arguments(inputs: Any) -> str:
    """Return a hint on a batch whose items are all arguments; "" for one argument, or by name."""
    if not isinstance(inputs, (tuple, list)) or len(inputs) < 2:
        return ""
    return (
        f"; all of its {len(inputs)} items are taken as arguments: an example in inputs= says how "
        "many are"
    )


def _mistake(inputs: Any, arrays: str) -> str:
    if isinstance(inputs, (tuple, list)) and len(inputs) > 1 and all(map(is_int, inputs)):
        return f"{short(str(tuple(inputs)), 60)} looks like a shape; give an array of that shape"
    for item in _items(inputs):
        if isinstance(item, np.ndarray) and arrays:
            return f"an array of NumPy is among them; give {arrays}, of the model's type"
        if isinstance(item, (str, bytes)):
            return "a text is among them; give arrays, as a tokenizer makes of it"
        if not hasattr(item, "shape") and _is_collection(item):
            return (
                f"a {type(item).__name__} is among them; give what the model takes of one of its "
                "batches, and all batches as calibration="
            )
    return ""


def _items(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Mapping):
        yield from inputs.values()
    elif isinstance(inputs, (tuple, list)):
        yield from inputs
    else:
        yield inputs


def _is_collection(item: Any) -> bool:
    """Return whether something has batches or examples, as loaders and data sets have."""
    if isinstance(item, (Mapping, tuple, list)):
        return False
    return isinstance(item, Iterable) or hasattr(type(item), "__getitem__")
