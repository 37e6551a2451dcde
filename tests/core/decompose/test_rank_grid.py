from __future__ import annotations

import itertools

import pytest

from rankfold.decompose.rank_grid import spaced


@pytest.mark.parametrize("multiple_of", [1, 8])
@pytest.mark.parametrize("most", [3, 8, 41, 1000])
@pytest.mark.parametrize("count", [6, 40])
def test_ranks_are_ascending_multiples_up_to_the_largest(
    most: int, multiple_of: int, count: int
) -> None:
    ranks = spaced(most, multiple_of, count)
    assert ranks == sorted(set(ranks))
    assert ranks[-1] == most
    assert all(rank % multiple_of == 0 for rank in ranks[:-1])
    assert len(ranks) <= 2 * count
    assert ranks[0] == min(most, multiple_of)


def test_few_ranks_are_all_there_are() -> None:
    assert spaced(7, 1, 40) == [1, 2, 3, 4, 5, 6, 7]
    assert spaced(29, 8, 40) == [8, 16, 24, 29]


def test_steps_are_fine_at_small_ranks_and_never_wide_at_large_ones() -> None:
    ranks = spaced(1000, 1, 40)
    steps = [after - before for before, after in itertools.pairwise(ranks)]
    assert ranks[:4] == [1, 2, 3, 4]
    assert max(steps) <= 1000 / 20 + 1
