"""Ops with read-only arrays, and ops with copied arrays.

The arrays of a layer that an adapter has read may be the memory of the user's model. Code that
works in place on them, as numerical code does, would change that model without a word.
"""

from __future__ import annotations

import numpy as np

from rankfold import linalg
from rankfold.ops.transforms import mapped
from rankfold.ops.types import Op


def protected(op: Op) -> Op:
    """Return the layer with arrays that cannot be written to, or that are copies.

    Arrays of NumPy become read-only views. There are no such views of a tensor on an accelerator,
    which is copied.
    """
    return mapped(
        op, lambda a: linalg.read_only(a) if isinstance(a, np.ndarray) else linalg.copied(a)
    )


def copied(op: Op) -> Op:
    """Copy the arrays of a layer, but for blank ones, which take no memory."""
    return mapped(op, lambda a: a if linalg.takes_no_memory(a) else linalg.copied(a))
