from __future__ import annotations

import numpy as np
import pytest
import tensorly as tl
from tests.core.decompose.factorizations import distance, spectral

from rankfold.decompose import cp_als as als
from rankfold.decompose.cp_correction import correct
from rankfold.decompose.tensor_algebra import Fit, sum_of_squares


def test_error_preserving_correction_lowers_the_norms_within_the_bound(
    rng: np.random.Generator,
) -> None:
    tensor = spectral(rng, 19, 13, 3, 3)
    start = als.fit(tensor, 17, rng)
    bound = start.error * 1.05
    corrected = correct(tensor, start, bound)
    assert sum_of_squares(corrected.factors) < 0.95 * sum_of_squares(start.factors)
    measured = distance(tl.cp_to_tensor((None, list(corrected.factors))), tensor)
    assert measured == pytest.approx(corrected.error, rel=1e-6)
    assert measured <= bound * (1 + 1e-6)


def test_a_model_above_the_bound_gets_less_of_an_error(rng: np.random.Generator) -> None:
    tensor = spectral(rng, 9, 7, 3, 2)
    start = als.fit(tensor, 5, rng)
    worse = tuple(f + 0.2 * rng.standard_normal(f.shape) for f in start.factors)
    error = distance(tl.cp_to_tensor((None, list(worse))), tensor)
    corrected = correct(tensor, Fit(worse, error), 1e-3)
    measured = distance(tl.cp_to_tensor((None, list(corrected.factors))), tensor)
    assert measured == pytest.approx(corrected.error, rel=1e-6)
    assert corrected.error < error


def test_a_term_of_zeros_stays_one_and_finite(rng: np.random.Generator) -> None:
    tensor = spectral(rng, 9, 7, 3)
    factors = [f.copy() for f in als.fit(tensor, 4, rng).factors]
    for factor in factors:
        factor[:, 2] = 0.0
    error = distance(tl.cp_to_tensor((None, factors)), tensor)
    corrected = correct(tensor, Fit(tuple(factors), error), error * 1.01)
    assert all(np.isfinite(factor).all() for factor in corrected.factors)
    assert sum_of_squares(corrected.factors) <= sum_of_squares(factors)
