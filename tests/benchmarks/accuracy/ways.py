"""The ways of choosing ranks and weights that are compared, at an equal share of the MACs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tests.benchmarks.accuracy.subjects import Subject
from torch import nn

import rankfold as rf
from rankfold.pipeline.result import Compressed

Way = Callable[[nn.Module, torch.Tensor, float, Sequence[torch.Tensor], Subject], Compressed]
_CLASSICAL = ("svd", "tucker2")


def share_of(small: Compressed) -> float:
    """The share of the MACs that is left."""
    assert small.plan.macs is not None
    before, after = small.plan.macs
    return after / before


def evbmf(model: nn.Module, x: torch.Tensor) -> Compressed:
    """EVBMF ranks of SVD and Tucker-2."""
    return rf.compress(model, rf.VBMF(), inputs=x, methods=_CLASSICAL)


def _uniform(model: nn.Module, x: torch.Tensor, share: float, *_: Any) -> Compressed:
    """The largest share of the channels, the same in every layer, that keeps within the MACs."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = 0.5 * (low + high)
        before, after = rf.plan(model, rf.Ratio(middle), inputs=x, methods=_CLASSICAL).macs or (
            1,
            1,
        )
        low, high = (middle, high) if after <= share * before else (low, middle)
    return rf.compress(model, rf.Ratio(max(low, 1e-6)), inputs=x, methods=_CLASSICAL)


def _plain(model: nn.Module, x: torch.Tensor, share: float, *_: Any) -> Compressed:
    return rf.compress(model, rf.Budget(macs=share), inputs=x)


def _informed(refit: bool) -> Way:
    def way(
        model: nn.Module,
        x: torch.Tensor,
        share: float,
        batches: Sequence[torch.Tensor],
        subject: Subject,
    ) -> Compressed:
        return rf.compress(
            model,
            rf.Budget(macs=share),
            inputs=x,
            calibration=batches,
            loss=subject.loss,
            refit=refit,
        )

    return way


WAYS: dict[str, Way] = {
    "same ratio everywhere": _uniform,
    "plain budget": _plain,
    "data-aware budget": _informed(refit=False),
    "data-aware, refitted": _informed(refit=True),
}
EVBMF = "EVBMF ranks"
