"""Truncated SVD of the matrices of transformers at a tenth of the smaller side."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
from tests.benchmarks.decomposition import ours, peers
from tests.benchmarks.decomposition.comparison import Row, Side
from tests.benchmarks.decomposition.sections import SVD
from tests.benchmarks.decomposition.weights import matrix

import rankfold as rf

_EXACT = 1e-4  # how far the exact form may be from the full SVD: it is stored in float32


class Case(NamedTuple):
    """A linear layer."""

    layer: str
    out: int
    into: int

    @property
    def name(self) -> str:
        """For -k."""
        return f"{self.out}x{self.into}"


CASES = [
    Case("ViT-B attention", 768, 768),
    Case("ViT-B MLP", 768, 3072),
    Case("ViT-B MLP", 3072, 768),
    Case("7B attention", 4096, 4096),
]
if os.environ.get("RANKFOLD_BENCHMARK_LONG"):
    CASES.append(Case("7B MLP", 11008, 4096))
SMOKE = [Case("small", 130, 210)]


def test_truncated_svd_is_no_worse_than_peers(case: Case, compare: Callable[..., Row]) -> None:
    weight = matrix(case.out, case.into, seed=0)
    op = rf.Linear(weight=weight)
    rank = min(case.out, case.into) // 10
    forms = {
        "ours": partial(rf.truncated_svd, op, rank),
        "exact": partial(rf.truncated_svd, op, rank, exact=True),
    }
    others = {
        "numpy.linalg.svd": peers.numpy_svd,
        "torch.svd_lowrank": peers.torch_svd,
        "randomized_svd": peers.sklearn_svd,
    }
    row = compare(
        SVD,
        f"{case.layer} {case.name}",
        (rank,),
        [Side(name, run, partial(ours.error, op)) for name, run in forms.items()],
        [
            Side(
                name,
                partial(run, weight, rank),
                lambda found: ours.distance(weight, peers.dense_product(found)),
            )
            for name, run in others.items()
        ],
    )
    for exact in row.own[1:]:
        assert exact.figure == pytest.approx(row.peers[0].figure, rel=_EXACT)
