"""The curve of one call is that of every budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankfold as rf


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 128), nn.Linear(128, 40))


def test_budgets_lie_on_it() -> None:
    x = torch.randn(2, 96)
    curve = rf.tradeoff(network(), inputs=x)
    assert (curve.resource, curve.measure) == ("macs", "error")
    for share in (0.8, 0.5, 0.3):
        plan = rf.plan(network(), rf.Budget(macs=share), inputs=x)
        errors = [layer.error or 0.0 for layer in plan.layers]
        root = (sum(error**2 for error in errors) / len(errors)) ** 0.5
        assert root == pytest.approx(curve.loss_at(share), rel=0.05)


def test_moments_make_it_one_of_the_loss() -> None:
    moments = rf.gather(network(), torch.randn(64, 96).split(16))
    curve = rf.tradeoff(network(), moments=moments)
    assert (curve.resource, curve.measure) == ("params", "loss")


def test_a_model_with_nothing_to_choose_is_an_error() -> None:
    with pytest.raises(rf.RankfoldError, match="no layer has anything cheaper on offer"):
        rf.tradeoff(network(), exclude="*")
