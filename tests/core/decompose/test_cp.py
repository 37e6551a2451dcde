from __future__ import annotations

import numpy as np
import pytest
import tensorly as tl
from tensorly.decomposition import parafac
from tests.core.decompose.factorizations import distance, factored, spectral

import rankfold as rf
from rankfold.decompose.cp import CP3, CP4, cp, cp3
from rankfold.decompose.cp import parafac as own_parafac
from rankfold.errors import RankfoldError
from rankfold.ops import Conv


@pytest.mark.parametrize("rank", [3, 11, 29, 60])
@pytest.mark.parametrize("flat", [False, True], ids=["4-way", "3-way"])
def test_cp_is_no_worse_than_tensorly(flat: bool, rank: int, rng: np.random.Generator) -> None:
    weight = spectral(rng, 19, 13, 3, 3)
    tensor = weight.reshape(19, 13, 9) if flat else weight
    theirs = distance(
        tl.cp_to_tensor(
            parafac(tensor.copy(), rank, n_iter_max=40, init="random", random_state=0, tol=0)
        ),
        tensor,
    )
    assert factored(rf.Conv(weight), "cp3" if flat else "cp", (rank,)).error <= theirs * 1.01
    assert distance(tl.cp_to_tensor(own_parafac(tensor, rank)), tensor) <= theirs * 1.01


def test_an_error_bound_that_a_rank_does_not_reach_is_an_error(rng: np.random.Generator) -> None:
    op = rf.Conv(spectral(rng, 19, 13, 3, 3))
    with pytest.raises(rf.RankfoldError, match=r"above the error_bound 0.01; use a higher rank"):
        rf.cp(op, 5, error_bound=0.01)


def test_an_axis_along_which_nothing_happens_has_no_stage() -> None:
    op = Conv(np.ones((11, 7, 1, 5)), padding=(0, 2))
    assert [s.weight.shape for s in CP4.template(op, (4,))] == [
        (4, 7, 1, 1),
        (4, 1, 1, 5),
        (11, 4, 1, 1),
    ]
    strided = Conv(np.ones((11, 7, 1, 5)), stride=(2, 1))
    assert len(CP4.template(strided, (4,))) == 4
    assert len(CP3.template(strided, (4,))) == 3


def test_the_largest_rank_is_all_sizes_but_the_largest() -> None:
    op = Conv(np.ones((22, 7, 3, 5)), groups=2)
    assert CP4.max_ranks(op) == (7 * 3 * 5,)
    assert CP3.max_ranks(op) == (7 * 11,)


def test_both_unfoldings_get_the_larger_of_their_ranks() -> None:
    assert CP4.ranks((3, 8)) == (8,)


@pytest.mark.usefixtures("few_sweeps")
def test_all_but_the_first_classical_stage_have_unit_columns(rng: np.random.Generator) -> None:
    first, *others = cp(Conv(spectral(rng, 11, 7, 3, 2)), 5, placement="classical")
    for stage in others[:-1]:
        np.testing.assert_allclose(np.linalg.norm(stage.weight.reshape(5, -1), axis=1), 1.0)
    np.testing.assert_allclose(np.linalg.norm(others[-1].weight[:, :, 0, 0], axis=0), 1.0)
    assert (np.linalg.norm(first.weight.reshape(5, -1), axis=1) > 1.0).any()


@pytest.mark.parametrize("bound", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("method", [cp, cp3])
def test_an_error_bound_that_is_none_is_an_error(method: object, bound: float) -> None:
    with pytest.raises(RankfoldError, match="use one between 0 and 1"):
        method(Conv(np.ones((5, 7, 3))), 2, error_bound=bound)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("tensor", "rank", "message"),
    [
        (np.ones(5), 1, "two axes or more"),
        (np.zeros((5, 7)), 1, "not all zero"),
        (np.full((5, 7), np.nan), 1, "be finite"),
        (np.ones((5, 7, 3)), 16, "rank 16; use 1 to 15"),
        (np.ones((5, 7, 3)), 0, "rank 0; use 1 to 15"),
    ],
)
def test_a_tensor_without_a_model_is_an_error(tensor: np.ndarray, rank: int, message: str) -> None:
    with pytest.raises(RankfoldError, match=message):
        own_parafac(tensor, rank)
