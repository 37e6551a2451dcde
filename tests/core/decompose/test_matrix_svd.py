from __future__ import annotations

import numpy as np
import pytest

import rankfold as rf
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.channel_svd import CHANNEL_SVD
from rankfold.decompose.matrix_svd import MatrixSVD
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spatial_svd import SPATIAL_SVD
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.svd import SVD
from rankfold.errors import RankfoldError
from rankfold.ops import Conv, Embedding, Linear
from rankfold.ops.reference import reconstruct

RNG = np.random.default_rng(0)
CASES: dict[str, tuple[MatrixSVD, rf.Op]] = {
    "wide": (SVD, Linear(RNG.standard_normal((7, 19)))),
    "tall": (SVD, Linear(RNG.standard_normal((23, 11)))),
    "grouped": (SVD, Linear(RNG.standard_normal((22, 5)), groups=2)),
    "table": (SVD, Embedding(RNG.standard_normal((29, 8)))),
    "channels": (CHANNEL_SVD, Conv(RNG.standard_normal((13, 3, 3, 2)))),
    "kernel": (SPATIAL_SVD, Conv(RNG.standard_normal((5, 7, 3, 2)))),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_at_ranks_are_those_of_the_decompositions(name: str) -> None:
    method, op = CASES[name]
    spectrum = Spectrum(op)
    offered = method.error_at_ranks(op, spectrum, 2)
    assert offered[-1] == (method.max_ranks(op), 0.0)
    for ranks, error in offered:
        chain = method.decompose(
            op, ranks, spectrum=spectrum, placement="balanced", rng=np.random.default_rng(0)
        ).chain
        lost = (reconstruct(op, chain) - op.weight) / spectrum.scale
        assert error == pytest.approx((lost**2).sum(), abs=1e-9 * spectrum.energy)


@pytest.mark.parametrize("name", CASES)
def test_the_values_of_the_mode_are_the_squared_singular_values_of_its_matrix(name: str) -> None:
    method, op = CASES[name]
    (mode,) = method.modes(op, Spectrum(op))
    assert mode.values.shape == (op.groups, min(mode.sides))
    total = (op.weight**2).sum() / mode.scale**2
    assert mode.values.sum() == pytest.approx(total)
    if op.weight.ndim == 2:
        matrices = op.weight.reshape(op.groups, -1, op.weight.shape[1]) / mode.scale
        expected = np.linalg.svd(matrices, compute_uv=False) ** 2
        np.testing.assert_allclose(mode.values, expected, atol=1e-12)


def test_a_rank_beyond_the_matrix_is_an_error_that_names_the_most() -> None:
    method, op = CASES["channels"]
    with pytest.raises(RankfoldError, match=r"rank 14 exceeds 13 output channels.*use at most 13"):
        method.template(op, (14,))


def test_the_later_stage_is_the_regression_of_the_outputs_on_the_first() -> None:
    rng = np.random.default_rng(1)
    method, op = CASES["tall"]
    x = rng.standard_normal((400, 11)) @ rng.standard_normal((11, 11))
    moments = LayerMoments((x.T @ x / 400)[None], np.zeros((1, 11)), None, 10**12, 1.0)
    metric = Metric(op, moments)
    spectrum = Spectrum(op, metric)
    first = Linear(rng.standard_normal((4, 11)))
    chain = (first, Linear(np.zeros((23, 4)), np.ones(23)))
    regression = Regression.of(metric, spectrum.rows * spectrum.scale, first.weight[None])
    again, last = method.with_later_stages(op, chain, regression, metric)
    assert again is first
    expected = np.linalg.lstsq(x @ first.weight.T, x @ op.weight.T, rcond=None)[0].T
    np.testing.assert_allclose(last.weight, expected, atol=1e-6)
    assert np.array_equal(last.bias, np.ones(23))
