"""A plan in which every layer stays says what to try."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankfold as rf


def untrained() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 9)
    )


def test_a_policy_without_effect_is_told_with_the_reason_most_layers_have() -> None:
    (note,) = rf.plan(untrained(), rf.VBMF()).notes
    assert "no layer is replaced, 2 of 3 since 'rank 0: EVBMF found no structure" in note
    assert "Budget(params=0.5)" in note


@pytest.mark.parametrize("policy", [rf.Ratio(0.2), rf.Budget(params=1.0), rf.Ranks(1)])
def test_other_plans_say_nothing_of_it(policy: rf.Budget | rf.Ratio | rf.Ranks) -> None:
    assert not [note for note in rf.plan(untrained(), policy).notes if "no layer" in note]
