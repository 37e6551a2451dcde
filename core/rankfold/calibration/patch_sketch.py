"""One-pass sketch of the second moment of wide patches, without a matrix of their order.

For a test matrix Ω of a few columns the sketch is Y = C Ω, a mean over rows x of x (xᵀ Ω). It gives
the Nyström approximation Y (Ωᵀ Y)⁺ Yᵀ, never above C, which is near the best of that rank where
eigenvalues decay (Tropp, Yurtsever, Udell and Cevher, arXiv 1706.05736). Trained networks have such
patches: neighbours are alike. What it leaves is taken for separable (`separable_moment`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from rankfold import linalg
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import rows_of, variances
from rankfold.linalg import Array
from rankfold.ops import Op

COLUMNS = 128
"""Columns of a test matrix. CREPE tiny at 30 % of its multiply-accumulates, calibrated, without a
refit, has 82.8 % of the pitches right with 64, 86.1 % with these, and 85.9 % with the whole moment
of its widest layer; `tests.benchmarks.real` measures it."""
ROWS = 16 * COLUMNS
"""Rows that are enough for a sketch: so many for each column that directions hold beyond them."""
SUMS = ("inputs", "mean", "squares", "taps")
"""Names of the sums over rows that a sketch is made of; see `separable`."""
_CUT = 1e-5
"""Least eigenvalue of Ωᵀ Y over the largest: below it, it is the rounding of sums in float32."""
_LEFT = 1e-6
"""Least share of its variance that is left of a channel: what remains has an inverse."""
_TINY = 1e-300
"""Stands for a length, a mean or an eigenvalue of 0 where it is divided by."""


def matrix_shape(op: Op) -> tuple[int, int, int]:
    """Return the shape (groups, d, columns) of the test matrix of a layer."""
    order = math.prod(op.weight.shape[1:])
    return op.groups, order, min(COLUMNS, order)


def matrix_for(op: Op) -> Array:
    """Return the test matrix Ω (groups, d, columns) of a layer, in float32 on the host.

    Half of its columns are mixtures of the rows of the weight W, or all of these rows: the error of
    the moment of the outputs W C Wᵀ is then a small one. The others are random, the same for every
    layer of a shape.
    """
    rows = linalg.host(rows_of(op))
    groups, order, columns = matrix_shape(op)
    outputs = rows.shape[1]
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((groups, order, columns), dtype=np.float32)
    mixed = rows.mT
    if outputs > columns // 2:
        mixed = mixed @ rng.standard_normal((groups, outputs, columns // 2))
    lengths = np.sqrt(np.square(mixed).sum(axis=1, keepdims=True))
    # Random columns have this length; a row of zeros in the weight stays a random one.
    mixed = mixed * np.where(lengths > 0.0, math.sqrt(order) / np.maximum(lengths, _TINY), 0.0)
    matrix[:, :, : mixed.shape[2]] = np.where(lengths > 0.0, mixed, matrix[:, :, : mixed.shape[2]])
    return matrix


def separable(matrix: Array, means: Mapping[str, Array]) -> SeparableMoment:
    """Return the covariance of patches from means over rows.

    Args:
        matrix: Ω, (groups, d, columns).
        means: "inputs", the sketch E[x (xᵀ Ω)] (groups, d, columns); "mean" and "squares", E[x] and
            E[x²] (groups, d); "taps", E[x xᵀ] over the positions of the kernel, a mean over
            channels, (groups, positions, positions).
    """
    mean, positions = linalg.double(means["mean"]), linalg.double(means["taps"])
    matrix = linalg.double(linalg.like(matrix, mean))
    groups, size, _ = positions.shape
    taken = linalg.product(mean[:, None, :], matrix)
    sketch = linalg.double(means["inputs"]) - mean[:, :, None] * taken
    core = linalg.product(matrix.mT, sketch)
    eigen = linalg.eigh(0.5 * (core + core.mT))
    values = linalg.host(eigen.values)
    kept = values > np.maximum(_CUT * values[:, :1], _TINY)
    inverse = np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    factor = linalg.product(sketch, linalg.scaled(eigen.vectors, inverse, 2))
    # What is left of each channel's variance and of the moment of the positions.
    variance = variances(linalg.double(means["squares"]), mean).reshape(groups, -1, size)
    left = variance - (factor * factor).sum(2).reshape(variance.shape)
    least = _LEFT * variance.mean(axis=2)
    channels = linalg.namespace(mean).maximum(left.mean(axis=2), least)
    beside = linalg.concatenated((mean[:, :, None], factor), 2)
    beside = beside.reshape(groups, -1, size, beside.shape[2])
    taken = linalg.permuted(beside, (0, 2, 1, 3)).reshape(groups, size, -1)
    rest = positions - linalg.product(taken, taken.mT) / beside.shape[1]
    return SeparableMoment(channels, _correlation(rest), factor)


def _correlation(moment: Array) -> Array:
    """Return the nearest positive semidefinite matrix with a mean diagonal of 1; of none, 1."""
    eigen = linalg.eigh(moment)
    values = np.maximum(linalg.host(eigen.values), 0.0)
    level = values.mean(axis=1, keepdims=True)
    values = np.where(level > 0.0, values / np.maximum(level, _TINY), 1.0)
    return linalg.product(linalg.scaled(eigen.vectors, values, 2), eigen.vectors.mT)
