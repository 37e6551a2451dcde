"""No Gram matrix is decomposed twice on the way from a model to a smaller one, no layer read."""

from __future__ import annotations

import cProfile
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold_torch.adapter import TorchAdapter


@pytest.mark.parametrize("methods", [None, ("svd", "tucker2")], ids=str)
@pytest.mark.parametrize("policy", [rf.Ratio(0.3), rf.Energy(0.8)], ids=repr)
def test_every_eigenproblem_is_solved_once(
    policy: rf.Policy, methods: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: Counter[bytes] = Counter()
    usual = np.linalg.eigh

    def eigh(matrices: np.ndarray) -> object:
        solved[matrices.tobytes()] += 1
        return usual(matrices)

    monkeypatch.setattr(np.linalg, "eigh", eigh)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(5, 24, 3), nn.Conv2d(24, 18, 3), nn.Flatten(), nn.Linear(18 * 4 * 4, 20)
    )
    small = rf.compress(model, policy, inputs=torch.randn(1, 5, 8, 8), methods=methods)
    assert small.plan.replaced
    assert set(solved.values()) == {1}


def test_the_paths_of_all_layers_are_found_in_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: Counter[bool] = Counter()
    usual = nn.Module.named_modules

    def named_modules(
        self: nn.Module, memo: object = None, prefix: str = "", remove_duplicate: bool = True
    ) -> object:
        walks[remove_duplicate] += not prefix  # the walk calls itself with prefixes
        return usual(self, memo, prefix, remove_duplicate)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(nn.Module, "named_modules", named_modules)
    shared = nn.Linear(7, 5)
    model = nn.Sequential(*(nn.Linear(7, 7) for _ in range(9)), shared, nn.Linear(5, 7), shared)
    plan = rf.plan(model, rf.Ratio(0.5), exclude="11")
    assert plan["9"].reason == "excluded by '11'"
    assert walks[False] == 1


@pytest.mark.parametrize("traced", [False, True])
def test_a_layer_that_stays_is_read_once(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    usual = TorchAdapter.read

    def read(self: TorchAdapter, model: nn.Module, path: str) -> object:
        reads[path] += 1
        return usual(self, model, path)

    monkeypatch.setattr(TorchAdapter, "read", read)
    model = nn.Sequential(nn.Embedding(9, 7), nn.Linear(7, 5), nn.Linear(5, 3))
    inputs = torch.arange(4) if traced else None
    rf.plan(model, rf.Ratio(0.5), inputs=inputs, exclude="*")
    assert reads == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("policy", [rf.Ratio(0.3), rf.VBMF(), rf.Budget(params=0.5)], ids=repr)
def test_calls_are_in_proportion_to_the_number_of_layers(policy: rf.Policy) -> None:
    x = torch.randn(2, 8)

    def calls(layers: int) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
        profile = cProfile.Profile()
        # A compression plans first: so both are planned, with a trace and without one.
        profile.runcall(rf.plan, model, policy)
        profile.runcall(rf.compress, model, policy, inputs=x)
        return sum(entry.callcount for entry in profile.getstats())

    calls(2)  # imports on the way
    few, many = calls(20), calls(80)
    assert many < 1.25 * 4 * few
