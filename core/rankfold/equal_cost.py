"""Moved to `rankfold.plugins`; this name goes with the next release."""

import warnings
from collections.abc import Callable

from rankfold.plugins import Choice, Layer, Unfolding, best_method

warnings.warn(
    "rankfold.equal_cost.least_error is rankfold.plugins.best_method",
    DeprecationWarning,
    stacklevel=2,
)


def least_error(layer: Layer, rank_of: Callable[[Unfolding], int], *, nothing_found: str) -> Choice:
    """Call `best_method`, whose `zero_rank_reason` was `nothing_found`."""
    return best_method(layer, rank_of, zero_rank_reason=nothing_found)
