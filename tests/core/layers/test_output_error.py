"""Predicted errors of outputs are those of outputs that are computed."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.spectrum import Spectrum
from rankfold.layers.candidates import Candidate
from rankfold.layers.output_error import loss_of, weighted
from rankfold.ops import Cost, Linear
from rankfold.ops.reference import forward

RNG = np.random.default_rng(3)
OP = Linear(RNG.standard_normal((11, 17)), RNG.standard_normal(11))
CHAIN = (
    Linear(RNG.standard_normal((5, 17))),
    Linear(RNG.standard_normal((11, 5)), OP.bias),
)
X = RNG.standard_normal((4000, 17)) * np.geomspace(3.0, 0.3, 17) + 1.5
PLAIN = Candidate("svd", (5,), CHAIN, Cost(0, 0), 1.0, 1.0)


def spectrum() -> Spectrum:
    moments = LayerMoments((X.T @ X / len(X))[None], X.mean(axis=0)[None], None, 10**6, 1.0)
    return Spectrum(OP, Metric(OP, moments))


def test_the_predicted_output_error_is_the_measured_one() -> None:
    candidate = weighted(PLAIN, OP, spectrum())
    first, last = candidate.chain
    y = forward(OP, X)
    off = forward(last, forward(first, X)) - y
    assert candidate.output == pytest.approx(np.linalg.norm(off) / np.linalg.norm(y), rel=1e-3)


def test_the_bias_keeps_the_mean_output() -> None:
    first, last = weighted(PLAIN, OP, spectrum()).chain
    mean = forward(last, forward(first, X)).mean(axis=0)
    np.testing.assert_allclose(mean, forward(OP, X).mean(axis=0), rtol=1e-6)


def test_without_data_a_loss_is_relative_to_the_weight() -> None:
    plain = Spectrum(OP, None)
    assert loss_of(plain.weight_of_all, plain) == pytest.approx(1.0)
    assert loss_of(0.25 * plain.weight_of_all, plain) == pytest.approx(0.25)
