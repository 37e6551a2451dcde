"""Regression of a layer's outputs on its inputs with a ridge towards its weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankfold import linalg
from rankfold.calibration.moments import RegressionSums
from rankfold.calibration.weighted_norm import POSITIONS, Metric, centred, rows_of
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Embedding, Op, with_weight

_WIDE = 1024
"""Outputs up to which traces of products of their moments are exact."""
_PROBES = 64


def regression(op: Op, fit: RegressionSums, ridge: float) -> tuple[Op, Array, Array | None]:
    """Refit the weight of a layer by ridge regression, towards the weight it has.

    Args:
        op: the layer.
        fit: sums over positions.
        ridge: λ, relative to the mean eigenvalue of the moment of the inputs.

    Returns:
        The op, the moment of its inputs (groups, d, d) with the ridge, and their mean where the
        layer has a bias, which then takes up the difference of the means.
    """
    if isinstance(op, Embedding):
        raise Refused("a table look-up has the inputs of the original")
    # minimise over B and b   E‖y − B x − b‖² + λ ‖B − W‖².
    # The bias b takes up the means, so that only deviations from them count:
    #     B (Σ_xx + λ 1) = Σ_yx + λ W,    b = E[y] − B E[x].
    # λ is relative to the mean eigenvalue of Σ_xx. With few samples Σ_xx is singular: along
    # directions that no sample shows, B is W, where a ridge towards zero would erase the weight.
    weight = rows_of(op)
    xx, yx = fit.xx / fit.count, fit.yx / fit.count
    mean = None
    if op.bias is not None:
        mean, target = fit.x / fit.count, fit.y / fit.count
        xx = centred(xx, mean)
        yx = yx - target[:, :, None] * mean[:, None, :]
    size = xx.shape[1]
    # The mean eigenvalue is the trace over the dimension: no eigendecomposition is needed for the
    # ridge.
    level = np.trace(xx, axis1=1, axis2=2)[:, None, None] / size
    if not (np.isfinite(level).all() and (level > 0.0).all()):
        raise Refused("its inputs on the calibration data never vary or are not finite")
    xx = xx + ridge * level * np.eye(size)
    # B (Σ_xx + λ 1) = … is solved as (Σ_xx + λ 1) Bᵀ = …ᵀ, the matrix being symmetric. The ridge
    # makes it definite, however few samples there were, so that a Cholesky factor will do.
    lower = linalg.cholesky(xx)
    half = linalg.solve_triangular(lower, (yx + ridge * level * weight).swapaxes(1, 2))
    solved = linalg.solve_triangular(lower, half, transposed=True).swapaxes(1, 2)
    dtype = op.weight.dtype
    refitted = with_weight(op, solved.reshape(op.weight.shape).astype(dtype))
    if mean is not None and op.bias is not None:
        bias = (target - np.einsum("god,gd->go", solved, mean)).reshape(-1)
        refitted = replace(refitted, bias=bias.astype(op.bias.dtype))
    return refitted, xx, mean


class OnSums:
    """Outputs R x + b over the positions that a sum is of; the positions are not needed.

    Args:
        rows: R, (groups, out, d).
        bias: b, (groups, out).
        joint: sums over positions of the inputs x and the layer's outputs y.
    """

    def __init__(self, rows: Array, bias: Array, joint: RegressionSums) -> None:
        self._rows, self._bias, self._joint = rows, bias, joint
        # The only products of the order of a row squared: once for all comparisons.
        self._moved = np.matmul(rows, joint.xx)
        self._mean = np.matmul(rows, joint.x[:, :, None])[:, :, 0]
        cross = np.matmul(rows, joint.yx.mT) + bias[:, :, None] * joint.y[:, None, :]
        self._cross: Array = cross
        self._own = self._residuals(self)

    def squared_error(self, metric: Metric | None) -> float:
        """Σ (y − ŷ)ᵀ G (y − ŷ) over the positions; G is 1 without a metric."""
        return _trace(self._own, metric)

    def standard_error(self, other: OnSums, metric: Metric) -> float:
        """Standard error of the difference of two errors, as the positions are a sample.

        With residuals r, s of the two the difference is Σ uᵀ v, where u = r − s and v = r + s. For
        normal residuals the variance of uᵀ v is tr(U V) + tr(C C) with U = E[u uᵀ], V = E[v vᵀ]
        and C = E[u vᵀ] (Isserlis), all of which the sums know. Positions of one example are alike:
        they count as `POSITIONS` samples at most. A refit that gains less than this may as well
        have lost.
        """
        count = self._joint.count
        rr, ss, rs = self._own / count, other._own / count, self._residuals(other) / count
        sr = rs.swapaxes(1, 2)
        uu, vv, uv = rr + ss - rs - sr, rr + ss + rs + sr, rr + rs - sr - ss
        variance = _trace_of_product(uu, vv, metric) + _trace_of_product(uv, uv, metric)
        alike = max(1.0, metric.positions_per_example / POSITIONS)
        return float(np.sqrt(max(0.0, variance) * count * alike))

    def _residuals(self, other: OnSums) -> Array:
        """Σ (y − ŷ)(y − ŷ')ᵀ of two maps over the positions, (groups, out, out)."""
        # With ŷ = R x + b of one and R' x + b' of the other, sums over the n positions:
        #     Σ (y − ŷ)(y − ŷ')ᵀ = Σyy − (R Σxy + b Σyᵀ) − (Σyx R'ᵀ + Σy b'ᵀ)
        #                          + R Σxx R'ᵀ + R Σx b'ᵀ + b (R' Σx)ᵀ + n b b'ᵀ.
        # Only these sums are kept, so that a chain is judged without the activations: O(d²) memory.
        bias, bias_other = self._bias[:, :, None], other._bias[:, None, :]
        both = np.matmul(self._moved, other._rows.mT)
        both = both + self._mean[:, :, None] * bias_other + bias * other._mean[:, None, :]
        both = both + self._joint.count * bias * bias_other
        total: Array = self._joint.yy - self._cross - other._cross.mT + both
        return total


def error_of_nothing(op: Op, joint: RegressionSums, metric: Metric | None) -> float:
    """Σ (y − b)ᵀ G (y − b) over the positions: the error of a layer with its bias alone."""
    bias = np.zeros(joint.y.shape) if op.bias is None else op.bias.reshape(joint.y.shape)
    cross = joint.y[:, :, None] * bias[:, None, :]
    squared = joint.count * bias[:, :, None] * bias[:, None, :]
    return _trace(joint.yy - cross - cross.mT + squared, metric)


def _trace(residuals: Array, metric: Metric | None) -> float:
    value = (
        float(np.einsum("goo->", residuals)) if metric is None else metric.weighted_trace(residuals)
    )
    if not np.isfinite(value):
        raise RankfoldError("the activations on the calibration data are not finite")
    return value


def _trace_of_product(a: Array, b: Array, metric: Metric) -> float:
    """Return tr(LᵀAL LᵀBL) with L Lᵀ = G, for A and B (groups, out, out)."""
    if a.shape[1] <= _WIDE:
        return float(np.vdot(_weighted(a, metric), _weighted(b, metric).mT))
    # Of many outputs the products have the cube of their number. The trace of a matrix is the mean
    # of wᵀ M w over random signs w (Hutchinson, Commun. Stat. Simul. 18, 1989): with 64 of them a
    # standard error is good to a tenth, and it is a threshold.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (a.shape[1], _PROBES))
    spread = metric.spread_outputs(signs)
    left, right = metric.weight_outputs(a.mT @ spread), metric.weight_outputs(b @ spread)
    return float(np.vdot(left, right)) / _PROBES


def _weighted(residuals: Array, metric: Metric) -> Array:
    """Return Lᵀ A L for A (groups, out, out)."""
    return metric.weight_outputs(metric.weight_outputs(residuals).mT).mT
