from __future__ import annotations

import numpy as np
import pytest
from tests.core.decompose.factorizations import spectral

import rankfold as rf
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.spatial_svd import SPATIAL_SVD, spatial_svd
from rankfold.decompose.spectrum import Spectrum
from rankfold.ops import Conv, Linear, params
from rankfold.ops.reference import reconstruct


@pytest.mark.parametrize("shape", [(11, 7, 3, 2), (3, 13, 2, 5)], ids=str)
def test_the_chain_is_the_best_of_the_matrix_of_rows_and_columns(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    op = Conv(spectral(rng, *shape))
    out, into, kh, kw = shape

    def matrix(weight: np.ndarray) -> np.ndarray:
        return weight.transpose(0, 3, 1, 2).reshape(out * kw, into * kh)

    left, values, right = np.linalg.svd(matrix(op.weight), full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    dense = reconstruct(op, spatial_svd(op, 4))
    np.testing.assert_allclose(matrix(dense), best, atol=1e-12)


def test_each_stage_has_the_geometry_of_its_own_axis(rng: np.random.Generator) -> None:
    op = Conv(spectral(rng, 11, 7, 3, 5), stride=(2, 3), padding=((1, 0), (2, 4)), dilation=(1, 2))
    vertical, horizontal = spatial_svd(op, 6)
    assert isinstance(vertical, Conv)
    assert isinstance(horizontal, Conv)
    assert vertical.weight.shape == (6, 7, 3, 1)
    assert horizontal.weight.shape == (11, 6, 1, 5)
    assert (vertical.stride, vertical.padding) == ((2, 1), ((1, 0), (0, 0)))
    assert (horizontal.stride, horizontal.padding) == ((1, 3), ((0, 0), (2, 4)))
    assert (vertical.dilation, horizontal.dilation) == ((1, 1), (1, 2))


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (Linear(np.ones((5, 7))), "applies to convolutions, not to Linear; use svd"),
        (Conv(np.ones((5, 7, 3))), "needs a 2-d kernel, not 1-d; use tucker2"),
        (Conv(np.ones((5, 7, 3, 1, 2))), "needs a 2-d kernel, not 3-d; use tucker2"),
    ],
)
def test_what_has_no_two_axes_is_refused(op: rf.Op, reason: str) -> None:
    assert SPATIAL_SVD.refuse(op) == f"spatial_svd {reason}"


def test_the_errors_under_a_metric_are_those_of_the_decompositions(
    rng: np.random.Generator,
) -> None:
    op = Conv(spectral(rng, 9, 5, 3, 2))
    half, grads = rng.standard_normal((1, 30, 30)), rng.standard_normal((1, 9, 9))
    moments = LayerMoments(half @ half.mT, half[:, 0] * 0.0, grads @ grads.mT, 900, 3.0)
    metric = Metric(op, moments)
    spectrum = Spectrum(op, metric)
    offered = SPATIAL_SVD.error_at_ranks(op, spectrum, 1)
    (most,) = offered[-1][0]
    # Above it two stages have more parameters than the layer.
    assert params(SPATIAL_SVD.template(op, (most,))) <= params(op)
    assert params(SPATIAL_SVD.template(op, (most + 1,))) > params(op)
    for ranks, announced in offered:
        chain = SPATIAL_SVD.decompose(
            op, ranks, spectrum=spectrum, placement="balanced", rng=rng
        ).chain
        lost = (reconstruct(op, chain) / spectrum.scale).reshape(spectrum.rows.shape)
        assert announced == pytest.approx(metric.squared(lost - spectrum.rows), rel=1e-6)
