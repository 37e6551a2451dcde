from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import tensorly as tl
from tests.core.decompose.factorizations import spectral

from rankfold.decompose import cp_als as als
from rankfold.decompose.tensor_algebra import (
    balance,
    gram_product,
    khatri_rao,
    mttkrp,
    multiply,
    relative_sensitivity,
    sensitivity,
    sum_of_squares,
    unfold,
)

SHAPE, RANK = (7, 5, 3, 2), 4


@pytest.fixture
def factors(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((size, RANK)) for size in SHAPE]


def test_products_of_columns_are_those_of_scipy(factors: list[np.ndarray]) -> None:
    product = khatri_rao(factors)
    expected = scipy.linalg.khatri_rao(scipy.linalg.khatri_rao(factors[0], factors[1]), factors[2])
    np.testing.assert_allclose(khatri_rao(factors[:3]), expected)
    np.testing.assert_allclose(gram_product(factors), product.T @ product)


@pytest.mark.parametrize("mode", range(4))
def test_modes_are_unfolded_and_multiplied_as_by_tensorly(
    mode: int, factors: list[np.ndarray], rng: np.random.Generator
) -> None:
    tensor = rng.standard_normal(SHAPE)
    matrix = rng.standard_normal((11, SHAPE[mode]))
    np.testing.assert_array_equal(unfold(tensor, mode), tl.unfold(tensor, mode))
    np.testing.assert_allclose(
        multiply(tensor, matrix, mode), tl.tenalg.mode_dot(tensor, matrix, mode)
    )
    expected = tl.unfold(tensor, mode) @ tl.tenalg.khatri_rao(factors, skip_matrix=mode)
    np.testing.assert_allclose(mttkrp(tensor, factors, mode), expected)


def test_balanced_vectors_of_a_term_have_one_norm_and_the_model_stays(
    factors: list[np.ndarray],
) -> None:
    factors[1][:, 2] = 0.0
    balanced = balance(factors)
    norms = np.stack([np.linalg.norm(factor, axis=0) for factor in balanced])
    np.testing.assert_allclose(norms, norms[:1].repeat(len(SHAPE), 0))
    assert not norms[:, 2].any()
    np.testing.assert_allclose(
        tl.cp_to_tensor((None, list(balanced))), tl.cp_to_tensor((None, factors)), atol=1e-12
    )


def test_the_sum_of_squares_is_that_of_the_terms(factors: list[np.ndarray]) -> None:
    terms = [tl.cp_to_tensor((None, [f[:, r : r + 1] for f in factors])) for r in range(RANK)]
    assert sum_of_squares(factors) == pytest.approx(sum((term**2).sum() for term in terms))


def test_terms_that_are_alike_and_do_not_cancel_have_a_sensitivity_of_one_a_mode() -> None:
    factors = [np.eye(size)[:, :2] for size in (5, 4, 3)]
    energy = float((tl.cp_to_tensor((None, factors)) ** 2).sum())
    assert relative_sensitivity(factors, energy) == pytest.approx(3.0)


def test_sensitivity_is_the_mean_squared_change_under_noise(rng: np.random.Generator) -> None:
    factors = als.fit(spectral(rng, 11, 7, 3, 2), 5, rng).factors
    clean = tl.cp_to_tensor((None, list(factors)))
    sigma = 1e-5
    changes = [
        np.linalg.norm(
            tl.cp_to_tensor((None, [f + sigma * rng.standard_normal(f.shape) for f in factors]))
            - clean
        )
        ** 2
        for _ in range(400)
    ]
    assert np.mean(changes) / sigma**2 == pytest.approx(sensitivity(factors), rel=0.1)
