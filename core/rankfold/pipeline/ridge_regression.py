"""Regression of a layer's outputs on its inputs with a ridge towards its weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rankfold import linalg
from rankfold.calibration.moments import RegressionSums
from rankfold.calibration.weighted_norm import POSITIONS, Metric, centred, rows_of
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Embedding, Op, with_weight

_PROBES = 64
"""Columns of random signs in place of more outputs; see `OnSums.standard_error`."""


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
    # The mean eigenvalue is the trace over the dimension: no eigendecomposition is needed for the
    # ridge.
    level = linalg.traces(xx) / xx.shape[1]
    if not (np.isfinite(level).all() and (level > 0.0).all()):
        raise Refused("its inputs on the calibration data never vary or are not finite")
    xx = linalg.loaded(xx, ridge * level)
    # B (Σ_xx + λ 1) = … is solved as (Σ_xx + λ 1) Bᵀ = …ᵀ, the matrix being symmetric. The ridge
    # makes it definite, however few samples there were, so that a Cholesky factor will do.
    lower = linalg.cholesky(xx)
    half = linalg.solve_triangular(lower, (yx + linalg.scaled(weight, ridge * level, 0)).mT)
    solved = linalg.solve_triangular(lower, half, transposed=True).mT
    dense = linalg.contiguous(linalg.cast(solved.reshape(op.weight.shape), op.weight.dtype))
    refitted = with_weight(op, dense)
    if mean is not None and op.bias is not None:
        means = linalg.einsum("god,gd->go", solved, mean)
        bias: Any = linalg.cast((target - means).reshape(-1), op.bias.dtype)
        refitted = replace(refitted, bias=bias)
    return refitted, xx, mean


class OnSums:
    """Outputs R x + b over the positions that a sum is of; the positions are not needed.

    Args:
        rows: R, (groups, out, d).
        bias: b, (groups, out).
        sums: sums over positions of the inputs x and the layer's outputs y.
    """

    def __init__(self, rows: Array, bias: Array, sums: RegressionSums) -> None:
        # With a 1 beside the inputs, z = (x, 1), the map is one matrix A = (R, b).
        self._map = linalg.concatenated([rows, bias[:, :, None]], axis=2)
        self._sums = sums
        self._yz = linalg.concatenated([sums.yx, sums.y[:, :, None]], axis=2)
        self._moved = self._times(self._map)

    def _times(self, matrix: Array) -> Array:
        """Return M Σzzᵀ, (groups, out, d + 1)."""
        sums = self._sums
        rows, bias = matrix[:, :, :-1], matrix[:, :, -1:]
        # In float64 whatever the precision of the sums: rows that cancel a common offset of the
        # inputs leave errors far below the rounding of such a product in float32.
        products = linalg.product(linalg.double(rows), sums.xx)
        moved = products + bias * sums.x[:, None, :]
        last = linalg.product(rows, sums.x[:, :, None]) + sums.count * bias
        return linalg.concatenated([moved, last], axis=2)

    def squared_error(self, metric: Metric | None) -> float:
        """Σ (y − ŷ)ᵀ G (y − ŷ) over the positions; G is 1 without a metric."""
        # Σ (y − A z)(y − A z)ᵀ = Σyyᵀ − A Σzyᵀ − Σyzᵀ Aᵀ + A Σzzᵀ Aᵀ, and G is symmetric.
        # Only these sums are kept, so that a chain is judged without the activations.
        part = self._moved - 2.0 * self._yz
        if metric is None:
            return _finite(float(self._sums.square.sum()) + linalg.inner(part, self._map))
        return _finite(metric.trace(_held_out(self._sums)) + metric.inner(part, self._map))

    def standard_error(self, other: OnSums, metric: Metric) -> float:
        """Standard error of the difference of two errors, as the positions are a sample.

        With residuals r, s of the two the difference is Σ uᵀ G v, where u = r − s and v = r + s.
        For normal residuals the variance of uᵀ G v is tr(G U G V) + tr(G C G C) with U = E[u uᵀ],
        V = E[v vᵀ] and C = E[u vᵀ] (Isserlis), all of which the sums know. Positions of one example
        are alike: they count as `POSITIONS` samples at most. A refit that gains less than this may
        as well have lost.
        """
        # With D = A − A' and S = A + A', u = −D z and v = 2 y − S z:
        #     Σuuᵀ = D Σzzᵀ Dᵀ,    Σuvᵀ = D Σzzᵀ Sᵀ − 2 D Σzyᵀ,
        #     Σvvᵀ = 4 Σyyᵀ − 2 Σyzᵀ Sᵀ − 2 S Σzyᵀ + S Σzzᵀ Sᵀ.
        # They have the square of the outputs, and their products the cube. The trace of a product
        # is the sum over the columns w of the identity of ⟨Mᵀ w, N w⟩; of many outputs the mean
        # over columns of random signs (Hutchinson, Commun. Stat. Simul. 18, 1989). With 64 of them
        # a standard error is good to a tenth, and it is a threshold.
        out = self._map.shape[1]
        columns = linalg.identity(out, self._map)
        if out > _PROBES:
            signs = np.random.default_rng(0).choice([-1.0, 1.0], (out, _PROBES))
            columns = linalg.like(signs / np.sqrt(_PROBES), self._map)
        w = metric.spread_outputs(columns[None])
        difference, total = self._map - other._map, self._map + other._map
        moved = self._moved - other._moved
        yz, yy, both = self._yz, _held_out(self._sums), self._moved + other._moved
        at = linalg.product  # sums of many columns are of float32, w is not
        uu = at(difference, at(moved.mT, w))
        uv = at(moved, at(total.mT, w)) - 2.0 * at(difference, at(yz.mT, w))
        vu = at(total, at(moved.mT, w)) - 2.0 * at(yz, at(difference.mT, w))
        vv = 4.0 * at(yy, w) - 2.0 * (at(yz, at(total.mT, w)) + at(total, at(yz.mT, w)))
        vv = vv + at(both, at(total.mT, w))
        pairs = ((uu, vv), (vu, uv))
        variance = sum(
            linalg.inner(metric.weight_outputs(left), metric.weight_outputs(right))
            for left, right in pairs
        )
        alike = max(1.0, metric.positions_per_example / POSITIONS)
        return float(np.sqrt(max(0.0, variance) * alike / self._sums.count))


def error_of_nothing(op: Op, sums: RegressionSums, metric: Metric | None) -> float:
    """Σ (y − b)ᵀ G (y − b) over the positions: the error of a layer with its bias alone."""
    bias = sums.y * 0.0 if op.bias is None else op.bias.reshape(sums.y.shape)
    part, bias = (sums.count * bias - 2.0 * sums.y)[:, :, None], bias[:, :, None]
    if metric is None:
        return _finite(float(sums.square.sum()) + linalg.inner(part, bias))
    return _finite(metric.trace(_held_out(sums)) + metric.inner(part, bias))


def _held_out(sums: RegressionSums) -> Array:
    """Return Σ y yᵀ, which sums over held-out positions have."""
    assert sums.yy is not None
    return sums.yy


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise RankfoldError("the activations on the calibration data are not finite")
    return value
