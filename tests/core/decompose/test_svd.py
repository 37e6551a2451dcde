from __future__ import annotations

import numpy as np
import pytest
from tests.core.decompose.factorizations import factored, spectral

import rankfold as rf
from rankfold.decompose.svd import SVD, truncated_svd
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear
from rankfold.ops.reference import reconstruct


@pytest.mark.parametrize("shape", [(23, 41), (41, 23), (29, 30)])
def test_truncated_svd_is_the_best_approximation(
    shape: tuple[int, int], rng: np.random.Generator
) -> None:
    op = rf.Linear(spectral(rng, *shape))
    singular = np.linalg.svd(op.weight, compute_uv=False)
    for rank in (1, 5, 17):
        best = np.linalg.norm(singular[rank:]) / np.linalg.norm(singular)
        assert factored(op, "svd", (rank,)).error == pytest.approx(best, rel=1e-9)


def test_each_group_is_a_matrix_of_its_own(rng: np.random.Generator) -> None:
    op = Linear(spectral(rng, 22, 9), groups=2)
    dense = reconstruct(op, truncated_svd(op, 3))
    for group in (slice(0, 11), slice(11, 22)):
        left, values, right = np.linalg.svd(op.weight[group], full_matrices=False)
        best = (left[:, :3] * values[:3]) @ right[:3]
        np.testing.assert_allclose(dense[group], best, atol=1e-12)


def test_a_table_becomes_a_smaller_table_and_a_matrix(rng: np.random.Generator) -> None:
    op = Embedding(spectral(rng, 17, 6))
    table, last = truncated_svd(op, 4)
    assert isinstance(table, Embedding)
    assert isinstance(last, Linear)
    left, values, right = np.linalg.svd(op.weight, full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    np.testing.assert_allclose(table.weight @ last.weight.T, best, atol=1e-12)


def test_the_geometry_of_a_pointwise_convolution_stays_on_the_first_stage(
    rng: np.random.Generator,
) -> None:
    op = Conv(spectral(rng, 11, 7, 1, 1), stride=(2, 3), padding=1)
    first, last = truncated_svd(op, 4)
    assert isinstance(first, Conv)
    assert isinstance(last, Conv)
    assert (first.stride, first.padding) == (op.stride, op.padding)
    assert (last.stride, last.padding) == ((1, 1), ((0, 0), (0, 0)))


def test_rows_of_zeros_stay_zeros_to_the_bit(rng: np.random.Generator) -> None:
    weight = spectral(rng, 13, 11)
    weight[[2, 7]] = 0.0
    _, last = truncated_svd(Linear(weight), 5)
    assert not last.weight[[2, 7]].any()
    assert np.abs(np.delete(last.weight, [2, 7], axis=0)).max(axis=1).all()


@pytest.mark.parametrize(
    ("op", "instead"),
    [
        (Conv(np.ones((5, 7, 3))), "channel_svd"),
        (Conv(np.ones((5, 7, 1, 2))), "channel_svd"),
        (ConvTranspose(np.ones((5, 7, 1))), "channel_svd"),
    ],
    ids=["kernel", "second axis", "transposed"],
)
def test_what_is_no_matrix_is_refused_with_another_method(op: rf.Op, instead: str) -> None:
    assert instead in (SVD.refuse(op) or "")
    assert SVD.refuse(Conv(np.ones((5, 7, 1, 1)))) is None
