"""No Gram matrix is decomposed twice on the way from a model to a smaller one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf


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
