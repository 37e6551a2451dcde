"""Choice among a layer's refits: the best on held-out positions, by more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankfold.calibration.moments import LayerMoments, RegressionSums
from rankfold.calibration.weighted_norm import Metric
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Chain, Op
from rankfold.pipeline.refit_problem import RefitProblem
from rankfold.pipeline.ridge_regression import OnSums, error_of_nothing

RIDGES = (3.0, 1e-1)
"""Relative to the mean eigenvalue of the inputs' moment, the most cautious first. On classifiers of
digits, fitted to printed ones and tested on handwritten ones at 15 % of their cost, 3 keeps 2 to 3
points more than 0.1 or less does, with the same loss on held-out printed ones; on a deep residual
network at 4 % it keeps 3 points fewer, with three times the loss on held-out examples. With 30 in
front of these a deep recogniser of text keeps 13 points fewer at half of its cost."""
_WORTH = 0.01
"""The share of the energy of the outputs that a bolder ridge has to gain over a more cautious one.
What it gains below this on data of the calibration's kind, it loses on data of another: without it
the classifiers above keep 0 to 2 points fewer. At 0.02 the residual network keeps a point fewer."""
_ROUNDING = 5e-5
"""Relative to the held-out Σ ‖y‖²: errors are differences of sums of that size, which frameworks
add up in float32. Between PyTorch and XLA they were seen to differ by up to 1e-5 of it."""


@dataclass(frozen=True, eq=False)
class LayerPart:
    """A layer or some of its groups, with the chain before a refit and the sums to refit it to."""

    op: Op
    chain: Chain
    groups: Sequence[int] | None
    fit: RegressionSums
    validation: RegressionSums

    def metric(self, moments: LayerMoments | None) -> Metric | None:
        """Return the metric of these groups, from the moments of the layer."""
        if moments is None or self.groups is None:
            return None
        return Metric(self.op, moments.of_groups(self.groups))


@dataclass(frozen=True, eq=False)
class RefitCandidate:
    """A chain with its error over the held-out positions.

    Attributes:
        chain: in place of the layer.
        on_validation: its outputs.
        error: Σ (y − ŷ)ᵀ G (y − ŷ) over the held-out positions.
        sensitivity: of a CP model.
        unweighted: Σ ‖y − ŷ‖² over fitted and held-out positions.
    """

    chain: Chain
    on_validation: OnSums
    error: float
    sensitivity: float | None = None
    unweighted: float = 0.0


def best_refit(problem: RefitProblem, part: LayerPart, sensitivity: float | None) -> RefitCandidate:
    """Return the best of the chain and its refits, by the held-out positions."""
    validation, metric = problem.validation, problem.metric
    # Starting from the chain without a refit, each ridge has to beat the best so far on examples
    # that nothing was fitted to, by more than the noise of that comparison. Else the outcome would
    # hang on the order in which a framework adds up, or on the examples held out. These are of the
    # same kind as those that were fitted to, and data in use may be of another: so a refit has to
    # be clearly better than one that stays closer to the weight.
    start = OnSums(*problem.affine(part.chain), validation)
    best = RefitCandidate(part.chain, start, start.squared_error(metric), sensitivity)
    # The size that rounding is relative to.
    size = error_of_nothing(part.op, validation, metric)
    for ridge in RIDGES:
        try:
            refit = problem.solve(ridge)
        except (Refused, RankfoldError, np.linalg.LinAlgError):
            continue  # with the chain before the refit
        on_sums = OnSums(*problem.affine(refit.chain), validation)
        error = on_sums.squared_error(metric)
        noise = _ROUNDING * size + best.on_validation.standard_error(on_sums, metric)
        if best.chain is not part.chain:
            noise = max(noise, _WORTH * size)
        if error < best.error - noise:
            best = RefitCandidate(refit.chain, on_sums, error, refit.sensitivity)
    on_fit = OnSums(*problem.affine(best.chain), problem.fit)
    unweighted = on_fit.squared_error(None) + best.on_validation.squared_error(None)
    return replace(best, unweighted=unweighted)
