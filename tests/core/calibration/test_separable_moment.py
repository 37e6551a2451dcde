"""All that is done with a separable moment is done with the matrix that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.linalg import Array

GROUPS, CHANNELS, ROWS, COLUMNS, RANK = 2, 5, 3, 2, 4
POSITIONS = ROWS * COLUMNS
ORDER = CHANNELS * POSITIONS


def drawn(seed: int = 0) -> SeparableMoment:
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((GROUPS, POSITIONS, 9))
    return SeparableMoment(
        rng.uniform(0.5, 2.0, (GROUPS, CHANNELS)),
        half @ half.mT / 9,
        rng.standard_normal((GROUPS, ORDER, RANK)),
    )


def dense(moment: SeparableMoment) -> Array:
    base = [
        np.kron(np.diag(variances), positions)
        for variances, positions in zip(moment.variances, moment.positions, strict=True)
    ]
    whole: Array = np.stack(base) + moment.factor @ moment.factor.mT
    return whole


def test_products_traces_and_channels_are_those_of_the_matrix() -> None:
    moment = drawn()
    whole = dense(moment)
    rows = np.random.default_rng(1).standard_normal((GROUPS, 3, ORDER))
    np.testing.assert_allclose(moment.products(rows), rows @ whole)
    np.testing.assert_allclose(moment.diagonal, np.einsum("gdd->gd", whole))
    half = moment.root_products(rows)
    np.testing.assert_allclose(half @ half.mT, rows @ whole @ rows.mT)
    split = whole.reshape(GROUPS, CHANNELS, POSITIONS, CHANNELS, POSITIONS)
    channels = np.einsum("gapbp->gab", split) / POSITIONS
    np.testing.assert_allclose(moment.channels, channels, atol=1e-5)
    np.testing.assert_allclose(dense(moment.over(3.0)), whole / 3.0)
    np.testing.assert_allclose(dense(moment.of_groups([1])), whole[1:])
    mean = np.random.default_rng(2).standard_normal((GROUPS, ORDER))
    outer = mean[:, :, None] * mean[:, None, :]
    np.testing.assert_allclose(dense(moment.with_mean(mean)), whole + outer)


def test_a_column_of_the_kernel_meets_the_mean_of_their_moments() -> None:
    moment = drawn()
    part = CHANNELS * ROWS
    split = dense(moment).reshape(GROUPS, part, COLUMNS, part, COLUMNS)
    expected = np.einsum("gawbw->gab", split) / COLUMNS
    np.testing.assert_allclose(dense(moment.of_columns(COLUMNS)), expected)


@pytest.mark.parametrize("positions", [1, COLUMNS, POSITIONS])
def test_a_basis_on_both_sides(positions: int) -> None:
    moment = drawn()
    basis = np.random.default_rng(1).standard_normal((GROUPS, ORDER // positions, 3))
    every = np.stack([np.kron(group, np.eye(positions)) for group in basis])
    np.testing.assert_allclose(moment.both_sides(basis), every.mT @ dense(moment) @ every)


def test_shrinkage_keeps_the_energy_and_moves_it_to_the_separable_part() -> None:
    moment = drawn()
    traces = np.trace(dense(moment), axis1=1, axis2=2)
    low = []
    for samples in (1, 100, 10**4, 10**9):
        less = moment.shrunken(samples)
        np.testing.assert_allclose(np.trace(dense(less), axis1=1, axis2=2), traces, rtol=1e-9)
        low.append(float(np.square(less.factor).sum()))
        assert np.linalg.eigvalsh(dense(less)).min() > 0.0
    assert low == sorted(low)
    assert low[0] < 0.5 * low[-1]
    np.testing.assert_allclose(dense(moment.shrunken(10**9)), dense(moment), rtol=1e-5, atol=1e-5)


def test_the_share_is_the_oracle_s_with_another_target() -> None:
    moment, samples = drawn().of_groups([0]), 50
    whole = dense(moment)[0]
    base = np.kron(np.diag(moment.variances[0]), moment.positions[0])
    target = base * np.trace(whole) / np.trace(base)
    scatter = (np.square(whole).sum() + np.trace(whole) ** 2) / (samples + 1)
    share = min(1.0, scatter / np.square(whole - target).sum())
    kept = np.square(moment.shrunken(samples).factor).sum() / np.square(moment.factor).sum()
    assert kept == pytest.approx(1.0 - share)


def test_inputs_that_never_occur_leave_the_identity_regular() -> None:
    zero = SeparableMoment(
        np.zeros((GROUPS, CHANNELS)),
        np.tile(np.eye(POSITIONS), (GROUPS, 1, 1)),
        np.zeros((GROUPS, ORDER, RANK)),
    )
    rows = np.ones((GROUPS, 1, ORDER))
    assert np.isfinite(zero.shrunken(10).products(rows)).all()
