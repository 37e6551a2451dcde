from __future__ import annotations

import numpy as np
import pytest

from rankfold.decompose.cp_pencil import from_pencil
from rankfold.decompose.tensor_algebra import khatri_rao
from rankfold.linalg import Array


def exact(shape: tuple[int, ...], rank: int) -> Array:
    rng = np.random.default_rng(rank)
    first, *others = (rng.standard_normal((size, rank)) for size in shape)
    tensor: Array = (first @ khatri_rao(others).T).reshape(shape)
    return tensor


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((17, 13, 3, 4), 11), ((17, 13, 3, 4), 15), ((31, 16, 3, 4, 2), 47), ((9, 7, 5), 7)],
    ids=str,
)
def test_a_tensor_of_that_rank_is_its_model(shape: tuple[int, ...], rank: int) -> None:
    tensor = exact(shape, rank)
    factors = from_pencil(tensor, rank, merge=False)
    assert factors is not None
    first, *others = factors
    np.testing.assert_allclose(
        (first @ khatri_rao(others).T).reshape(shape), tensor, atol=1e-8 * abs(tensor).max()
    )


def test_there_is_no_start_where_no_modes_together_reach_the_rank() -> None:
    assert from_pencil(exact((9, 7, 5), 10), 10, merge=True) is None


def test_there_is_no_start_for_a_tensor_far_from_the_rank() -> None:
    tensor = np.random.default_rng(0).standard_normal((17, 13, 3, 4))
    assert from_pencil(tensor, 11, merge=False) is None
