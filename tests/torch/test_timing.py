"""Times of layers and of models."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.ops import Chain, Conv, Embedding, Linear, blank
from rankfold_torch.adapter import TorchAdapter

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


class Sleeping(nn.Linear):
    def __init__(self, seconds: float) -> None:
        super().__init__(2, 2)
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().forward(x)


def test_models_are_measured(untouched: Untouched) -> None:
    model, other = Sleeping(0.02), Sleeping(0.004)
    x = torch.randn(3, 2)
    with untouched(model):
        slow, fast = TorchAdapter().model_seconds([model, other], (x,))
    assert slow >= 0.02
    assert 0.004 <= fast < slow


def chain_of(op: Any, rank: int) -> Chain:
    out, into = op.weight.shape[:2]
    kernel = op.weight.shape[2:]
    if isinstance(op, Embedding):
        return (Embedding(blank(out, rank)), Linear(blank(into, rank)))
    if isinstance(op, Linear):
        return (Linear(blank(rank, into)), Linear(blank(out, rank), blank(out)))
    return (
        Conv(blank(rank, into, *kernel)),
        Conv(blank(out, rank, *(1 for _ in kernel)), blank(out)),
    )


@pytest.mark.parametrize(
    ("layer", "extents"),
    [
        (nn.Linear(64, 32), ((5,), (2, 7))),
        (nn.Linear(16, 8).to(torch.bfloat16), ((5,),)),
        (nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last), ((2, 9, 8),)),
        (nn.Embedding(50, 6), ((3, 4),)),
    ],
)
def test_layers_are_measured(
    layer: nn.Module, extents: tuple[tuple[int, ...], ...], untouched: Untouched
) -> None:
    adapter = TorchAdapter()
    model = nn.Sequential(layer).train()
    op = adapter.read(model, "0")
    refused: Chain = (Linear(blank(2, 1), groups=2),)
    with untouched(model):
        times = adapter.seconds(model, "0", [chain_of(op, 2), refused, chain_of(op, 4)], extents)
    assert len(times) == 4
    assert times[2] == np.inf
    assert all(0 < times[i] < 1 for i in (0, 1, 3))


def test_fewer_operations_take_less_time() -> None:
    model = nn.Sequential(nn.Linear(512, 512))
    adapter = TorchAdapter()
    op = adapter.read(model, "0")
    before, after = adapter.seconds(model, "0", [chain_of(op, 8)], ((1024,),))
    assert after < before
