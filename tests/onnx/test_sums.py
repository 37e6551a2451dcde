"""Sums of products over rows, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from rankfold.plugins import RelativeDistance
from rankfold_onnx import sums
from rankfold_onnx.sums import OutputSums, Sum, add_distance, product, projected, squares

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((11, 2, 3)), RNG.standard_normal((11, 2, 5))


def test_products_are_per_group() -> None:
    np.testing.assert_allclose(product(Y, X), np.einsum("nga,ngb->gab", Y, X))
    np.testing.assert_allclose(squares(X), np.square(X).sum(0))


def test_a_sum_is_in_float64_unless_it_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    total = Sum()
    assert total.is_finite
    total.add(np.ones(3, np.float32))
    total.add(np.full(3, 2.0))
    assert total.over(2).tolist() == [1.5] * 3
    assert total.over(2).dtype == np.float64
    total.add(np.array([np.inf, 0, 0]))
    assert not total.is_finite
    monkeypatch.setattr(sums, "_WIDE", 2)
    wide = Sum()
    wide.add(np.ones(3))
    assert wide.over(2).dtype == np.float32


def test_sums_of_parts_are_those_of_all_rows() -> None:
    whole = {True: OutputSums(held_out=True), False: OutputSums(held_out=False)}
    for held_out, total in whole.items():
        assert total.regression_sums() is None
        for rows in (slice(0, 4), slice(4, 4), slice(4, 11)):
            total.add(X[rows], Y[rows])
        result = total.regression_sums()
        assert result is not None
        np.testing.assert_allclose(result.xx, product(X, X))
        np.testing.assert_allclose(result.yx, product(Y, X))
        np.testing.assert_allclose(result.x, X.sum(0))
        np.testing.assert_allclose(result.y, Y.sum(0))
        np.testing.assert_allclose(result.square, np.square(Y).sum((0, 2)))
        assert result.count == 11
        assert (result.yy is not None) == held_out
        total.add(np.full((1, 2, 3), np.nan), Y[:1])
        assert total.regression_sums() is None


def test_channels_of_a_row_are_projected_position_by_position() -> None:
    rows, basis = RNG.standard_normal((7, 2, 12)), RNG.standard_normal((2, 4, 3))
    expected = np.einsum("rgnp,gnk->rgkp", rows.reshape(7, 2, 4, 3), basis).reshape(7, 2, 9)
    np.testing.assert_allclose(projected(rows, basis), expected)
    assert projected(rows, None) is rows


def test_the_distance_is_relative_to_the_original() -> None:
    total = RelativeDistance()
    add_distance(total, Y.astype(np.float16), Y.astype(np.float16) + np.float16(1))
    size = np.linalg.norm(Y.astype(np.float16).astype(np.float64))
    assert total.value == pytest.approx(np.sqrt(Y.size) / size, rel=1e-3)
