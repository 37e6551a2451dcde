"""Training, fine-tuning and testing of the networks."""

from __future__ import annotations

import math

import torch
from tests.benchmarks.accuracy.data import Data
from torch import nn
from torch.nn import functional


def train(
    model: nn.Module, data: Data, *, epochs: float, rate: float, seed: int, size: int = 64
) -> None:
    """AdamW with a one-cycle learning rate on batches of that size, in place."""
    x, y = data.train
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    steps = max(1, round(epochs * len(x) / size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2
    )
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        batch, order = order[:size], order[size:]
        loss = cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over all predictions, of sequences as well."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test examples classified right, in per cent."""
    return 100.0 * float((_logits(model, data).argmax(-1) == data.test[1]).float().mean())


def perplexity(model: nn.Module, data: Data) -> float:
    """exp of the mean cross-entropy on the test text."""
    return math.exp(float(cross_entropy(_logits(model, data), data.test[1])))


@torch.no_grad()
def _logits(model: nn.Module, data: Data) -> torch.Tensor:
    model.eval()
    return torch.cat([model(batch) for batch in data.test[0].split(256)])
