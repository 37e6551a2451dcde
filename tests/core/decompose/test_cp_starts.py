from __future__ import annotations

import numpy as np
import pytest

from rankfold.decompose.cp_starts import from_singular_vectors, from_slices
from rankfold.decompose.tensor_algebra import khatri_rao, unfold
from rankfold.linalg import Array


def dense(factors: tuple[Array, ...], shape: tuple[int, ...]) -> Array:
    first, *others = factors
    product: Array = (first @ khatri_rao(others).T).reshape(shape)
    return product


def test_singular_vectors_start_where_the_mode_has_them() -> None:
    tensor = np.random.default_rng(0).standard_normal((9, 7, 3, 4))
    rank = 5
    factors = from_singular_vectors(tensor, rank, np.random.default_rng(0))
    assert [factor.shape for factor in factors] == [(size, rank) for size in tensor.shape]
    for mode, factor in enumerate(factors):
        vectors = np.linalg.svd(unfold(tensor, mode))[0][:, :rank]
        alike = abs((vectors * factor[:, : vectors.shape[1]]).sum(axis=0))
        np.testing.assert_allclose(alike, 1.0, rtol=1e-6)
        assert np.linalg.matrix_rank(factor) == min(factor.shape)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((9, 7, 3, 4), 5), ((7, 9, 3, 4), 84), ((110, 130, 3, 2), 70), ((110, 130, 3, 2), 300)],
    ids=str,
)
def test_slices_start_with_the_error_that_they_state(shape: tuple[int, ...], rank: int) -> None:
    tensor = np.random.default_rng(0).standard_normal(shape)
    start = from_slices(tensor, rank, np.random.default_rng(0))
    difference = dense(start.factors, shape) - tensor
    error = np.linalg.norm(difference) / np.linalg.norm(tensor)
    assert start.error == pytest.approx(error, rel=1e-5, abs=1e-7)


def test_a_sample_of_large_slices_is_nearly_as_good_as_their_singular_vectors() -> None:
    shape, rank = (110, 130, 3, 2), 70
    rng = np.random.default_rng(0)
    modes = [rng.standard_normal((size, size)) / np.arange(1, size + 1) for size in shape[:2]]
    tensor = np.einsum("oa,abhw,ib->oihw", modes[0], rng.standard_normal(shape), modes[1])
    values = np.linalg.svd(tensor.transpose(2, 3, 0, 1), compute_uv=False).ravel()
    squares = np.sort(values)[::-1] ** 2
    best = np.sqrt(squares[rank:].sum() / squares.sum())
    assert from_slices(tensor, rank, rng).error < 1.02 * best
