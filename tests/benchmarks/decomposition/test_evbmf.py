"""EVBMF ranks: eigenvalues of the smaller Gram matrix against a full SVD."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from tests.benchmarks.decomposition import peers
from tests.benchmarks.decomposition.comparison import Row, Side
from tests.benchmarks.decomposition.sections import EVBMF
from tests.benchmarks.decomposition.weights import kernel

import rankfold as rf


class Case(NamedTuple):
    """The kernel size that makes the unfolding (out, in·k²) of a layer."""

    layer: str
    out: int
    into: int
    size: int

    @property
    def name(self) -> str:
        """For -k."""
        return f"{self.out}x{self.into * self.size**2}"


CASES = [
    Case("convolution", 64, 64, 3),
    Case("convolution", 256, 256, 3),
    Case("convolution", 512, 512, 3),
    Case("ViT-B MLP", 768, 3072, 1),
]
SMOKE = [Case("convolution", 40, 23, 3)]


def test_evbmf_finds_the_ranks_of_all_singular_values(
    case: Case, compare: Callable[..., Row]
) -> None:
    weight = kernel(case.out, case.into, case.size, seed=0)
    matrix = weight.reshape(case.out, -1)
    found, expected = rf.evbmf(matrix), peers.full_svd_evbmf(matrix)
    assert found.rank == expected.rank > 0
    np.testing.assert_allclose(found.singular_values, expected.singular_values, rtol=1e-3)
    row = compare(
        EVBMF,
        f"{case.layer} {case.name}",
        (found.rank,),
        [Side("ours", partial(rf.evbmf, matrix), lambda found: found.sigma2)],
        [Side("full SVD", partial(peers.full_svd_evbmf, matrix), lambda found: found.sigma2)],
    )
    assert row.own[0].figure == pytest.approx(row.peers[0].figure, rel=EVBMF.tolerance)
