"""Errors of maps from sums over positions."""

from __future__ import annotations

import numpy as np

from rankfold.calibration.moments import RegressionSums
from rankfold.ops import Linear
from rankfold.pipeline.ridge_regression import OnSums, error_of_nothing


def test_rows_that_cancel_an_offset_are_judged_by_what_they_leave() -> None:
    rng = np.random.default_rng(0)
    count, size, out = 300, 1100, 24
    x = 500.0 + rng.standard_normal((count, size))
    weight = rng.standard_normal((out, size))
    weight -= weight.mean(axis=1, keepdims=True)
    y = x @ weight.T
    joint = RegressionSums(
        xx=(x.T @ x).astype(np.float32)[None],
        yx=(y.T @ x)[None],
        x=x.sum(0)[None],
        y=y.sum(0)[None],
        square=np.square(y).sum(0)[None],
        count=count,
        yy=(y.T @ y)[None],
    )
    rows = weight * (1.0 + 1e-3 * rng.standard_normal((out, 1)))
    bias = np.zeros((1, out))
    exact = joint.xx.astype(np.float64)
    expected = float(
        joint.square.sum()
        - 2.0 * np.vdot(joint.yx[0], rows)
        + np.einsum("od,de,oe->", rows, exact[0], rows, optimize=True)
    )
    actual = OnSums(rows[None], bias, joint).squared_error(None)
    size_of_all = error_of_nothing(Linear(weight), joint, None)
    assert abs(actual - expected) <= 1e-5 * size_of_all
