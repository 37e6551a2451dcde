"""CP of 3x3 convolutions, with one and with two depthwise stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tests.benchmarks.decomposition import ours, peers
from tests.benchmarks.decomposition.comparison import Row, Side
from tests.benchmarks.decomposition.sections import CP3, CP4
from tests.benchmarks.decomposition.weights import kernel

import rankfold as rf


class Case(NamedTuple):
    """A square 3x3 convolution at a rank."""

    ways: int
    out: int
    into: int
    rank: int

    @property
    def name(self) -> str:
        """For -k."""
        return f"{self.ways}way-{self.out}x{self.into}x3x3-rank{self.rank}"


CASES = [
    *(Case(ways, 64, 64, 64) for ways in (4, 3)),
    *(Case(ways, 256, 256, rank) for ways in (4, 3) for rank in (64, 128, 256, 512)),
    Case(3, 512, 512, 256),
]
SMOKE = [Case(ways, 23, 19, 17) for ways in (4, 3)]


def test_cp_is_no_worse_than_parafac(case: Case, compare: Callable[..., Row]) -> None:
    weight = kernel(case.out, case.into, 3, seed=0)
    op = rf.Conv(weight=weight, padding=1)
    tensor = weight if case.ways == 4 else weight.reshape(case.out, case.into, 9)
    form = rf.cp if case.ways == 4 else rf.cp3
    compare(
        CP4 if case.ways == 4 else CP3,
        f"{case.out}x{case.into}x3x3",
        (case.rank,),
        [Side("ours", partial(form, op, case.rank), partial(ours.error, op))],
        [
            Side(
                "parafac",
                partial(peers.parafac, tensor, case.rank),
                lambda found: ours.distance(tensor, peers.dense_cp(found)),
            )
        ],
    )
