from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rankfold.calibration.moments import (
    FEATURE_LIMIT,
    PATCH_LIMIT,
    LayerMoments,
    StoredMoments,
    full_gradients,
    has_regression,
    input_form,
    predictions,
    regressors,
)
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear, Op, blank


def test_tables_do_not_say_how_many_predictions_there_are() -> None:
    def of(samples: int, uses: float) -> LayerMoments:
        return LayerMoments(np.eye(3)[None], np.ones((1, 3)), None, samples, uses)

    layers = {"table": Embedding(np.ones((5, 3))), "linear": Linear(np.ones((4, 3)))}
    moments = {"table": of(2, 1.0), "linear": of(30, 7.0)}
    assert predictions(moments, layers) == 210
    assert predictions({"table": of(2, 1.0)}, layers) == 2


def of_groups(groups: int) -> LayerMoments:
    rng = np.random.default_rng(0)
    shapes = ((groups, 3, 3), (groups, 3), (groups, 2, 2))
    inputs, mean, grads = map(rng.standard_normal, shapes)
    return LayerMoments(inputs, mean, grads, 7, 2.0)


def test_no_array_can_be_written_to() -> None:
    moments = of_groups(2)
    assert moments.grads is not None
    for array in (moments.inputs, moments.mean, moments.grads):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0


def test_some_of_the_groups_have_their_own_moments() -> None:
    moments = of_groups(3)
    part = moments.of_groups([2, 0])
    assert np.array_equal(part.inputs, np.asarray(moments.inputs)[[2, 0]])
    assert np.array_equal(part.mean, moments.mean[[2, 0]])
    assert moments.grads is not None
    assert np.array_equal(part.grads, moments.grads[[2, 0]])
    assert (part.samples, part.positions_per_example) == (7, 2.0)


def test_stored_moments_are_read_each_time_and_not_for_their_names() -> None:
    reads: list[str] = []

    def read(path: str) -> Callable[[], LayerMoments]:
        return lambda: reads.append(path) or of_groups(1)  # type: ignore[func-returns-value]

    stored = StoredMoments({path: read(path) for path in ("a", "b")})
    assert (list(stored), len(stored), "a" in stored, "c" in stored) == (["a", "b"], 2, True, False)
    assert reads == []
    assert stored["a"] is not stored["a"]
    assert reads == ["a", "a"]
    with pytest.raises(KeyError):
        stored["c"]


@pytest.mark.parametrize(
    ("op", "form", "refitted", "matrix"),
    [
        (Embedding(blank(9, 4)), "diagonal", False, True),
        (Embedding(blank(9, PATCH_LIMIT + 1)), "diagonal", False, False),
        (Linear(blank(5, FEATURE_LIMIT)), "patches", True, True),
        (Linear(blank(5, FEATURE_LIMIT + 1)), "diagonal", False, True),
        (Linear(blank(FEATURE_LIMIT + 1, 5)), "patches", False, False),
        (Conv(blank(5, PATCH_LIMIT // 9, 3, 3)), "patches", True, True),
        (Conv(blank(5, PATCH_LIMIT // 9 + 1, 3, 3)), "separable", False, True),
        (ConvTranspose(blank(PATCH_LIMIT + 1, 5, 3)), "patches", True, False),
    ],
)
def test_the_size_of_a_layer_tells_what_is_gathered_of_it(
    op: Op, form: str, refitted: bool, matrix: bool
) -> None:
    assert input_form(op) == form
    assert has_regression(op, None) is refitted
    assert full_gradients(op) is matrix


def test_wide_patches_are_refitted_on_a_short_basis() -> None:
    op = Conv(blank(5, 1024, 3, 3))
    assert regressors(op, None) == 9216
    for rank, refitted in ((227, True), (228, False)):
        basis = blank(1, 1024, rank)
        assert regressors(op, basis) == 9 * rank
        assert has_regression(op, basis) is refitted
