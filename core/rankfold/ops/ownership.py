"""Ops with read-only arrays, and ops with copied arrays.

The arrays of a layer that an adapter has read may be the memory of the user's model. Code that
works in place on them, as numerical code does, would change that model without a word.
"""

from __future__ import annotations

import numpy as np

from rankfold import linalg
from rankfold.linalg import Array
from rankfold.ops.transforms import mapped
from rankfold.ops.types import Op


def protected(op: Op) -> Op:
    """Return the layer with arrays that cannot be written to, or that are copies.

    Arrays of NumPy become read-only views. There are no such views of a tensor on an accelerator,
    which is copied.
    """
    return mapped(op, _protected)


def copied(op: Op) -> Op:
    """Copy the arrays of a layer, but for blank ones, which take no memory."""
    return mapped(op, _copied)


def _protected(array: Array) -> Array:
    return linalg.read_only(array) if isinstance(array, np.ndarray) else linalg.copied(array)


def _copied(array: Array) -> Array:
    return array if linalg.takes_no_memory(array) else linalg.copied(array)
