"""Regression sums over rows of a layer in two runs, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankfold.calibration.accumulators import RelativeDistance
from rankfold_jax.calibration.layer_products import LayerProduct, Layout
from rankfold_jax.calibration.patches import MatrixView
from rankfold_jax.paired_run.output_sums import OutputSums, add_distance, regression_terms

RNG = np.random.default_rng(0)
GROUPS, WIDTH, OUT = 2, 3, 5
ROWS, OUTS = (np.arange(GROUPS * n).reshape(GROUPS, n) for n in (WIDTH, OUT))
# (images 4, positions 7, in) by (in, out), of which each group has a part
VIEW = MatrixView((), (2,), (4, 7, GROUPS * WIDTH), True)
PRODUCT = LayerProduct("a", 1, VIEW, Layout(ROWS, OUTS, np.arange(GROUPS)), ())
HELD = np.array([False, False, True, False])


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def split(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, GROUPS, values.shape[-1] // GROUPS).astype(np.float64)


def sums(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    return [
        np.einsum("nga,ngb->gab", x, x),
        np.einsum("nga,ngb->gab", y, x),
        x.sum(0),
        y.sum(0),
        np.square(y).sum((0, 2)),
        np.einsum("nga,ngb->gab", y, y),
    ]


def near(terms: Any, expected: list[np.ndarray]) -> None:
    for term, value in zip(terms, expected, strict=False):
        np.testing.assert_allclose(term, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chosen", [None, np.array([[6, 1], [0, 3], [2, 5], [4, 4]])])
def test_terms_are_those_of_the_rows_held_out_or_not(chosen: Any) -> None:
    x, y, bias = normal(4, 7, GROUPS * WIDTH), normal(4, 7, GROUPS * OUT), normal(GROUPS, OUT)
    fit, validation = regression_terms(PRODUCT, x, y, bias, chosen, HELD, None)
    if chosen is not None:
        x, y = (np.take_along_axis(v, chosen[..., None], 1) for v in (x, y))
    near(fit, sums(split(x[~HELD]), split(y[~HELD]) + bias)[:5])
    near(validation, sums(split(x[HELD]), split(y[HELD]) + bias))
    assert (len(fit), len(validation)) == (5, 6)


def test_rows_are_projected_on_a_basis() -> None:
    x, y, basis = normal(4, 7, GROUPS * WIDTH), normal(4, 7, GROUPS * OUT), normal(GROUPS, WIDTH, 2)
    fit, _ = regression_terms(PRODUCT, x, y, np.zeros((GROUPS, OUT)), None, HELD, basis)
    narrow = np.einsum("ngd,gdk->ngk", split(x[~HELD]), basis)
    near(fit, sums(narrow, split(y[~HELD]))[:5])


def test_batches_are_added_up_and_nothing_is_none() -> None:
    total = OutputSums()
    assert total.regression_sums() is None
    terms: list[Any] = sums(split(normal(4, 7, 6)), split(normal(4, 7, 10)))
    total.add(terms, 28)
    total.add(terms, 0)  # a batch that is held out whole
    total.add(terms, 28)
    result = total.regression_sums()
    assert result is not None
    assert result.count == 56
    assert result.yy is not None
    near(
        [result.xx, result.yx, result.x, result.y, result.square, result.yy], [2 * t for t in terms]
    )
    total.add([*terms[:4], np.array([np.inf, 1]), terms[5]], 1)
    assert total.regression_sums() is None


def test_distances_are_those_of_the_outputs_with_their_biases() -> None:
    y, other, bias, new = normal(4, 7, 10), normal(4, 7, 10), normal(2, 5), normal(2, 5)
    total = RelativeDistance()
    add_distance(total, PRODUCT, y, other, bias, new)
    a, b = split(y) + bias, split(other) + new
    assert total.value == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)
