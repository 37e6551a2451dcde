"""The sketch of wide patches keeps what matters of their covariance."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration import patch_sketch
from rankfold.calibration.patch_sketch import COLUMNS, matrix_for, matrix_shape, separable
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.linalg import Array
from rankfold.ops import Conv

GROUPS, OUT, CHANNELS, POSITIONS = 2, 7, 30, 12
ORDER = CHANNELS * POSITIONS


def layer() -> Conv:
    rng = np.random.default_rng(3)
    return Conv(rng.standard_normal((GROUPS * OUT, CHANNELS, POSITIONS)), groups=GROUPS)


def patches(rank: int, noise: float) -> Array:
    """Rows (n, groups, d) with a few strong directions, a mean and noise of uneven channels."""
    rng = np.random.default_rng(0)
    strong = rng.standard_normal((900, GROUPS, rank)) * 0.9 ** np.arange(rank)
    mixing = rng.standard_normal((GROUPS, rank, ORDER))
    rest = rng.standard_normal((900, GROUPS, CHANNELS, POSITIONS))
    rest *= rng.uniform(0.3, 3.0, (CHANNELS, 1))
    rows = np.einsum("ngr,grd->ngd", strong, mixing) + noise * rest.reshape(900, GROUPS, ORDER)
    shifted: Array = rows + rng.standard_normal(ORDER)
    return shifted


def means_of(rows: Array, matrix: Array) -> dict[str, Array]:
    split = rows.reshape(len(rows), GROUPS, CHANNELS, POSITIONS)
    taken = np.einsum("ngd,gdk->ngk", rows, matrix)
    return {
        "inputs": np.einsum("ngd,ngk->gdk", rows, taken) / len(rows),
        "mean": rows.mean(0),
        "squares": np.square(rows).mean(0),
        "taps": np.einsum("ngcp,ngcq->gpq", split, split) / len(rows) / CHANNELS,
    }


def sketched(rows: Array) -> tuple[Array, Array]:
    """The covariance of rows and its sketch, (groups, d, d)."""
    matrix = matrix_for(layer())
    moment = separable(matrix, means_of(rows, matrix.astype(np.float64)))
    eye = np.tile(np.eye(ORDER), (GROUPS, 1, 1))
    centred = rows - rows.mean(0)
    return np.einsum("ngd,nge->gde", centred, centred) / len(rows), moment.products(eye)


def test_few_directions_are_found_exactly() -> None:
    exact, sketch = sketched(patches(40, 0.0))
    np.testing.assert_allclose(sketch, exact, atol=1e-4 * float(np.abs(exact).max()))


def test_the_energy_is_that_of_the_patches_and_the_output_s_nearly() -> None:
    exact, sketch = sketched(patches(200, 1.0))
    weight = layer().weight.reshape(GROUPS, OUT, -1)
    whole = np.trace(exact, axis1=1, axis2=2)
    np.testing.assert_allclose(np.trace(sketch, axis1=1, axis2=2), whole, rtol=1e-6)
    outputs, kept = (np.einsum("god,gde,goe->g", weight, c, weight) for c in (exact, sketch))
    # The rows of the weight are in the test matrix; what remains adds its separable part.
    np.testing.assert_allclose(kept, outputs, rtol=0.35)
    assert (kept > 0.999 * outputs).all()


def test_every_channel_keeps_its_variance() -> None:
    exact, sketch = sketched(patches(200, 1.0))
    variances = [
        np.einsum("gdd->gd", c).reshape(GROUPS, CHANNELS, POSITIONS).mean(2)
        for c in (exact, sketch)
    ]
    np.testing.assert_allclose(variances[1], variances[0], rtol=1e-6)


def test_constant_and_dead_inputs_have_no_variance() -> None:
    rows = patches(40, 1.0)
    rows[:, :, : 3 * POSITIONS] = 0.0
    rows[:, :, 3 * POSITIONS : 5 * POSITIONS] = 7.0
    matrix = matrix_for(layer())
    moment = separable(matrix, means_of(rows, matrix.astype(np.float64)))
    assert moment.is_finite
    largest = float(moment.diagonal.max())
    assert float(moment.diagonal[:, : 5 * POSITIONS].max()) < 1e-9 * largest
    nothing = separable(matrix, means_of(rows * 0.0, matrix.astype(np.float64)))
    assert not nothing.diagonal.any()


@pytest.mark.parametrize("out", [3, COLUMNS // 2, 200])
def test_the_test_matrix_has_the_rows_of_the_weight_or_mixtures(out: int) -> None:
    weight = np.random.default_rng(0).standard_normal((out, CHANNELS, POSITIONS))
    weight[1] = 0.0
    op = Conv(weight.astype(np.float32))
    matrix = matrix_for(op)
    assert matrix.shape == matrix_shape(op) == (1, ORDER, COLUMNS)
    assert matrix.dtype == np.float32
    assert np.linalg.matrix_rank(matrix[0]) == COLUMNS
    rows = weight.reshape(out, -1)
    inside = rows if out <= COLUMNS // 2 else matrix[0, :, : COLUMNS // 2].T
    space = matrix[0] if out <= COLUMNS // 2 else rows.T
    rest = inside - inside @ np.linalg.pinv(space.T) @ space.T
    assert np.linalg.norm(rest) < 1e-4 * np.linalg.norm(inside)


def test_the_moment_is_one_of_the_vocabulary() -> None:
    assert patch_sketch.ROWS > COLUMNS
    rows = patches(4, 1.0)
    matrix = matrix_for(layer())
    moment = separable(matrix, means_of(rows, matrix.astype(np.float64)))
    assert isinstance(moment, SeparableMoment)
    assert moment.shape == (GROUPS, ORDER, ORDER)
