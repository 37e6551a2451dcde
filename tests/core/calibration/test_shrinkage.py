"""Moments of few samples."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.shrinkage import oas_shrinkage, shrunken

RNG = np.random.default_rng(6)


@pytest.mark.parametrize("samples", [1, 2, 8, 1000])
def test_shrinking_keeps_the_trace_and_makes_moments_regular(samples: int) -> None:
    x = RNG.standard_normal((min(samples, 50), 15))
    moment = (x.T @ x / len(x))[None]
    made = shrunken(moment, oas_shrinkage(moment, samples))
    assert np.trace(made[0]) == pytest.approx(np.trace(moment[0]))
    assert np.linalg.eigvalsh(made[0])[0] > 0.0
