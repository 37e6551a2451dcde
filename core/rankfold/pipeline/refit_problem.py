"""Problems that a refit solves: for all weights of a chain, or those after its first stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rankfold import linalg
from rankfold.calibration.moments import RegressionSums
from rankfold.calibration.weighted_norm import Metric, rows_of
from rankfold.decompose.base import Placement
from rankfold.decompose.guarded import Guarded
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import Refused
from rankfold.layers.bias_correction import shifted
from rankfold.linalg import Array, along_channels
from rankfold.ops import Chain, Embedding, Op, with_weight
from rankfold.ops.interpolation import without_pivots
from rankfold.ops.reference import reconstruct
from rankfold.pipeline.ridge_regression import regression

WIDE = 1152
"""The largest row of a weight (128 channels of a 3×3 kernel) of which all stages are refitted. Of
wider ones the first stage stays: sums, factors and products then have the order of what it gives,
and cost the square or cube of that. On networks narrower than this, keeping it everywhere cost
nothing at a tenth of the multiply-accumulates, and a point of accuracy at a twenty-fifth."""


@dataclass(frozen=True, eq=False)
class Refitted:
    """A chain with other weights.

    Attributes:
        chain: in place of the layer.
        sensitivity: of a CP model; see `rankfold.decompose.base.Factorization`.
    """

    chain: Chain
    sensitivity: float | None = None


class RefitProblem(Protocol):
    """Sums over inputs of what is refitted and over outputs of the layer, and how to refit."""

    @property
    def fit(self) -> RegressionSums:
        """The sums that weights are fitted to."""

    @property
    def validation(self) -> RegressionSums:
        """The sums that chains are compared on."""

    @property
    def metric(self) -> Metric:
        """The measure of errors of the output."""

    def affine(self, chain: Chain) -> tuple[Array, Array]:
        """Return the rows (groups, out, d) and the bias (groups, out) of a chain on the inputs."""

    def solve(self, ridge: float) -> Refitted:
        """Return the chain refitted with a ridge, relative to the mean eigenvalue of the inputs."""


@dataclass(frozen=True, eq=False)
class WholeLayer:
    """All weights: the layer is refitted, then decomposed anew.

    Attributes:
        op: the layer.
        method: decomposes it; None where it stays as it is.
        ranks: of the method.
        metric: of the layer.
        fit: see `RefitProblem`.
        validation: see `RefitProblem`.
        placement: how the scale is spread over a chain.
        seed: of the run.
    """

    op: Op
    method: Guarded | None
    ranks: tuple[int, ...]
    metric: Metric
    fit: RegressionSums
    validation: RegressionSums
    placement: Placement
    seed: int

    def affine(self, chain: Chain) -> tuple[Array, Array]:
        """Return the rows and the bias that a chain stands for."""
        rows = rows_of(with_weight(self.op, reconstruct(self.op, chain)))
        return rows, _bias(chain[-1], rows)

    def solve(self, ridge: float) -> Refitted:
        """Return the decomposition of the layer's ridge regression."""
        target, inputs, mean = regression(self.op, self.fit, ridge)
        if self.method is None:
            return Refitted((target,))
        measure = self.metric.with_inputs(inputs, mean)
        # Anew for each regression: whether a ridge is tried does not change the outcome of the
        # next.
        factored = self.method.decompose(
            target,
            self.ranks,
            spectrum=Spectrum(target, measure),
            placement=self.placement,
            rng=np.random.default_rng(self.seed),
        )
        if not all(linalg.is_finite(stage.weight) for stage in factored.chain):
            raise Refused(f"{self.method.name} gave values that are not finite")
        # The bias was solved for the target's weight; it makes up for what the decomposition loses
        # of that.
        lost = rows_of(target) - self.affine(factored.chain)[0]
        return Refitted(shifted(factored.chain, measure, lost), factored.sensitivity)


class LaterStages:
    """The stages after the first, which are regressed on what the first gives.

    The rows of the first stage are V ⊗ 1: a basis V of a part of the inputs at each of the
    positions that the stage leaves to the later ones.

    Args:
        op: the layer.
        method: which gave the chain; see `RegressesLaterStages`.
        chain: in place of the layer.
        metric: of the layer.
        fit: sums over the layer's inputs in the compressed model, as (V ⊗ 1)ᵀ x.
        validation: the same over held-out examples.
    """

    def __init__(
        self,
        op: Op,
        method: Guarded,
        chain: Chain,
        metric: Metric,
        fit: RegressionSums,
        validation: RegressionSums,
    ) -> None:
        self._op = op
        self._method = method
        # The first stage stays, so that the others are solved for as ordinary ones.
        self._chain = without_pivots(chain)
        self.metric = metric
        self._basis = first_basis(op, chain)
        self._positions = fit.xx.shape[1] // self._basis.shape[2]
        self.fit, self.validation = fit, validation

    def affine(self, chain: Chain) -> tuple[Array, Array]:
        """Return the rows that the later stages apply to what the first gives, and the bias."""
        groups = self._op.groups
        _, second, *others = (linalg.double(stage.weight) for stage in chain)
        rows = second.reshape(groups, len(second) // groups, -1)
        for pointwise in others:
            rows = pointwise.reshape(groups, len(pointwise) // groups, -1) @ rows
        return rows, _bias(chain[-1], rows)

    def solve(self, ridge: float) -> Refitted:
        """Return the chain with its later stages by ridge regression towards the weight."""
        # As in `regression`, with z = Z x in place of x: minimise over B and b
        #     E‖y − B z − b‖² + λ ‖B Z − W‖²,
        # so that B (Σ_zz + λ Z Zᵀ) = Σ_yz + λ W Zᵀ. Where Z is V ⊗ 1, so is Z Zᵀ = (VᵀV) ⊗ 1.
        variance = self.metric.input_variance
        if not (np.isfinite(variance).all() and (variance > 0.0).all()):
            raise Refused("its inputs on the calibration data never vary or are not finite")
        sums, basis = self.fit, self._basis
        zz, yz = sums.xx / sums.count, sums.yx / sums.count
        mean, target = sums.x / sums.count, sums.y / sums.count
        if self._op.bias is not None:
            zz = zz - mean[:, :, None] * mean[:, None, :]
            yz = yz - target[:, :, None] * mean[:, None, :]
        level = ridge * variance
        gram = linalg.repeated(basis.mT @ basis, self._positions)
        rhs = yz + linalg.scaled(along_channels(rows_of(self._op), basis), level, 0)
        fitted = Regression.from_moments(zz + linalg.scaled(gram, level, 0), rhs.mT)
        chain = self._method.with_later_stages(self._op, self._chain, fitted, self.metric)
        last = chain[-1]
        if self._op.bias is not None and not isinstance(last, Embedding):
            rows, _ = self.affine(chain)
            bias = (target - linalg.einsum("gom,gm->go", rows, mean)).reshape(-1)
            bias = linalg.cast(bias, self._op.weight.dtype)
            chain = (*chain[:-1], replace(last, bias=bias))
        return Refitted(chain)


def is_wide(op: Op) -> bool:
    """Return whether a row of a weight is too wide to refit all of it."""
    return math.prod(op.weight.shape[1:]) > WIDE


def first_basis(op: Op, chain: Chain) -> Array:
    """Return V (groups, d / positions, rank), the first stage of a chain as V ⊗ 1."""
    first = chain[0].weight
    stage = linalg.double(first).reshape(op.groups, len(first) // op.groups, -1)
    return stage.mT


def _bias(last: Op, rows: Array) -> Array:
    bias = last.bias
    return rows[:, :, 0] * 0.0 if bias is None else bias.reshape(rows.shape[:2])
