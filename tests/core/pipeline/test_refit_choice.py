"""Which refit is kept: the cautious one, unless a bolder one is clearly better."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.core.pipeline.test_refit import joint, moments_of

from rankfold.calibration.moments import RegressionSums
from rankfold.calibration.weighted_norm import Metric, rows_of
from rankfold.linalg import Array
from rankfold.ops import Chain, Linear
from rankfold.pipeline.refit_choice import RIDGES, LayerPart, best_refit
from rankfold.pipeline.refit_problem import Refitted

RNG = np.random.default_rng(2)
LAYER = Linear(RNG.standard_normal((6, 9)))
INPUTS = RNG.standard_normal((4000, 1, 9))
OUTPUTS = np.einsum("god,ngd->ngo", rows_of(LAYER), INPUTS)


def off(share: float) -> Chain:
    """A chain whose outputs are off by a share of their energy."""
    return (replace(LAYER, weight=LAYER.weight * (1.0 + np.sqrt(share))),)


@dataclass(frozen=True, eq=False)
class Refits:
    """Refits whose outputs are off by given shares of their energy, by ridge."""

    by_ridge: dict[float, float]
    metric: Metric
    fit: RegressionSums
    validation: RegressionSums

    def affine(self, chain: Chain) -> tuple[Array, Array]:
        return np.asarray(chain[0].weight)[None], np.zeros((1, 6))

    def solve(self, ridge: float) -> Refitted:
        return Refitted(off(self.by_ridge[ridge]))


def kept(*, start: float, cautious: float, bold: float) -> Chain:
    sums = joint(INPUTS, OUTPUTS)
    metric = Metric(LAYER, moments_of(INPUTS))
    refits = Refits(dict(zip(RIDGES, (cautious, bold), strict=True)), metric, sums, sums)
    return best_refit(refits, LayerPart(LAYER, off(start), None, sums, sums), None).chain


@pytest.mark.parametrize(
    ("start", "cautious", "bold", "expected"),
    [
        (0.2, 0.05, 0.045, 0.05),  # the bold one gains 0.5 % of the outputs' energy only
        (0.2, 0.05, 0.02, 0.02),
        (0.2, 0.3, 0.15, 0.15),
        (0.02, 0.3, 0.015, 0.015),  # no refit to prefer: the noise alone decides
        (0.2, 0.3, 0.3, 0.2),
    ],
)
def test_a_bolder_ridge_has_to_be_worth_it(
    start: float, cautious: float, bold: float, expected: float
) -> None:
    chain = kept(start=start, cautious=cautious, bold=bold)
    np.testing.assert_array_equal(chain[0].weight, off(expected)[0].weight)


def test_the_most_cautious_ridge_is_tried_first() -> None:
    assert list(RIDGES) == sorted(RIDGES, reverse=True)
