"""Regressions on a basis at every position are those on that basis written out."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spectrum import Spectrum
from rankfold.linalg import Array
from rankfold.ops import Conv

GROUPS, OUT, INTO, ROWS, COLUMNS = 2, 7, 5, 3, 2
SIZE = INTO * ROWS * COLUMNS


def spectrum(*, separable: bool) -> Spectrum:
    rng = np.random.default_rng(0)
    op = Conv(rng.standard_normal((GROUPS * OUT, INTO, ROWS, COLUMNS)), groups=GROUPS)
    half, grads = rng.standard_normal((GROUPS, SIZE, SIZE)), rng.standard_normal((GROUPS, 9, OUT))
    inputs: Array | SeparableMoment = half @ half.mT
    if separable:
        positions = half[:, : ROWS * COLUMNS]
        inputs = SeparableMoment(
            rng.uniform(0.3, 3.0, (GROUPS, INTO)), positions @ positions.mT, 3.0 * half[:, :, :7]
        )
    mean = half[:, :, 0] * 0.0
    return Spectrum(op, Metric(op, LayerMoments(inputs, mean, grads.mT @ grads, 900, 3.0)))


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("positions", [ROWS * COLUMNS, COLUMNS])
def test_positions_are_taken_together(separable: bool, positions: int) -> None:
    of = spectrum(separable=separable)
    assert of.metric is not None
    part, rank = SIZE // positions, 4
    basis = np.random.default_rng(1).standard_normal((GROUPS, part, rank))
    stage = np.einsum("gnr,pq->grpnq", basis, np.eye(positions))
    stage = stage.reshape(GROUPS, rank * positions, SIZE)
    expected = Regression.of(of.metric, of.rows, stage)
    actual = Regression.at_positions(of.metric, of.moved.rows, basis, positions)
    assert np.allclose(actual.worth(), expected.worth())
    assert np.allclose(actual.explained, expected.explained)
    for count in (positions, rank * positions):
        assert np.allclose(actual.solution(count), expected.solution(count))


@pytest.mark.parametrize("separable", [True, False])
def test_a_regression_of_weighted_outputs_is_the_regression_weighted(separable: bool) -> None:
    of = spectrum(separable=separable)
    assert of.metric is not None
    basis = np.random.default_rng(1).standard_normal((GROUPS, INTO, 3))
    plain = Regression.at_positions(of.metric, of.moved.rows, basis, ROWS * COLUMNS)
    weighted = Regression.at_positions(of.metric, of.weighted_moved, basis, ROWS * COLUMNS)
    assert np.allclose(plain.weighted(of.metric).worth(), weighted.worth())
    count = 3 * ROWS * COLUMNS
    back = of.metric.unweight_outputs(weighted.solution(count))
    assert np.allclose(back, plain.solution(count))
    directions = np.random.default_rng(2).standard_normal((GROUPS, OUT, 2))
    towards = plain.towards(directions).solution(count)
    assert np.allclose(towards, directions.mT @ plain.solution(count))
