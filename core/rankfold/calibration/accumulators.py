"""Sums that every backend accumulates over a calibration set, and the errors it raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from rankfold.calibration import patch_sketch
from rankfold.calibration.array_store import ArrayStore
from rankfold.calibration.moments import RegressionSums, input_form, regressors
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import POSITIONS
from rankfold.errors import RankfoldError
from rankfold.linalg import Array, is_finite
from rankfold.ops import Op

_LEAST_ROWS = 12800
"""Rows of a moment, over all examples: with the 64 examples of a small calibration set that is 200
positions of each image. The error of a sampled second moment falls with the root of the rows: with
half of them a ResNet-50 takes a hundredth less time, and its outputs are off by 5 % more."""
_ROWS_PER_COLUMN = 4
"""Rows for each number of a patch, or the moment of a wide kernel would be singular."""
_WIDE = 1024
"""Columns from which a moment counts as wide."""
_POSITIONS_OF_WIDE = 64
"""Positions of an example that are enough for a wider moment, as long as its rows outnumber its
columns: neighbours are alike, and a moment costs its rows times the square of its columns."""


def sampled_positions(op: Op, examples: int, basis: Array | None = None) -> int:
    """Return how many output positions of each image a second moment needs.

    Args:
        op: the layer.
        examples: seen in all; the more, the fewer positions of each are needed.
        basis: what wide patches are projected on, where it is not a test matrix.
    """
    width = math.prod(op.weight.shape[1:])
    rows = max(_LEAST_ROWS, _ROWS_PER_COLUMN * width)
    if input_form(op) == "separable":
        # As many positions of an example as count as samples of their own in the shrinkage: four
        # times as many gave the same on CREPE tiny.
        columns = 0 if basis is None else regressors(op, basis)
        rows = max(patch_sketch.ROWS, columns, POSITIONS * examples)
    elif width > _WIDE:
        rows = min(rows, max(width, _POSITIONS_OF_WIDE * examples))
    return math.ceil(rows / max(1, examples))


def input_moment(
    op: Op, mean: Callable[[str], Array], store: ArrayStore
) -> Callable[[], Array | SeparableMoment]:
    """Return what reads the moment of a layer's inputs.

    Args:
        op: the layer.
        mean: reads a mean over its rows by name: "inputs" in the form of the layer; where that is
            "separable", what `patch_sketch.separable` takes.
        store: keeps a separable moment, which is made once.
    """
    if input_form(op) != "separable":
        return partial(mean, "inputs")
    means = {name: mean(name) for name in patch_sketch.SUMS}
    moment = patch_sketch.separable(patch_sketch.matrix_for(op), means)
    parts = (moment.variances, moment.positions, moment.factor)
    if not isinstance(moment.factor, np.ndarray):  # it stays on its device
        return lambda: moment
    kept = [store.keep(part) for part in parts]
    return lambda: SeparableMoment(*(part.load() for part in kept))


def regression_sums(sums: Mapping[str, Array], count: int) -> RegressionSums | None:
    """Collect the sums of one layer; None where there are none, or where they are not finite.

    Args:
        sums: "xx", "yx", "x", "y", "square" and of held-out rows "yy", as in `RegressionSums`.
        count: the number of rows.
    """
    if not count or not all(map(is_finite, sums.values())):
        return None
    return RegressionSums(**sums, count=count)


class RelativeDistance:
    """Relative distance ‖y − ŷ‖ / ‖y‖ of outputs that come in parts."""

    def __init__(self) -> None:
        self._error, self._energy = 0.0, 0.0

    def add(self, error: float, energy: float) -> None:
        """Add ‖y − ŷ‖² and ‖y‖² of a part."""
        self._error += error
        self._energy += energy

    @property
    def value(self) -> float:
        """Distance over all parts."""
        return math.sqrt(self._error / max(self._energy, 1e-300))


def input_not_finite(path: str) -> RankfoldError:
    """Return the error for a layer whose input on the calibration data is not finite."""
    return RankfoldError(
        f"layer {path!r}: its input on the calibration data has NaN or infinite values; check the "
        "data and the layers before it"
    )


def gradient_not_finite(path: str) -> RankfoldError:
    """Return the error for a layer at whose output the gradient of the loss is not finite."""
    return RankfoldError(
        f"layer {path!r}: the gradient of the loss at its output has NaN or infinite values; check "
        "the loss, or convert the model to float32"
    )


def moment_not_finite(path: str, what: str, remedy: str) -> RankfoldError:
    """Return the error for a layer whose second moment overflows.

    Args:
        path: of the layer.
        what: "inputs" or "gradients", which the moment is of.
        remedy: what to scale down.
    """
    return RankfoldError(
        f"layer {path!r}: the second moment of its {what} on the calibration data is not finite; "
        f"scale {remedy} down"
    )
