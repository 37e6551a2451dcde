"""Calibration holds the moments of one layer at a time, however many layers there are."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.peak_memory import PEAK

pytest.importorskip("torch")

MIB = 2**20
SETUP = (
    PEAK
    + """
import torch
import rankfold as rf
from rankfold.calibration import array_store
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2) / y.shape[-1] ** 0.5
        x = x + self.out(scores.softmax(-1) @ self.v(y))
        return x + self.down(torch.relu(self.up(x)))


def transformer(width, depth, vocabulary):
    blocks = (Block(width) for _ in range(depth))
    return nn.Sequential(
        nn.Embedding(vocabulary, width), *blocks, nn.Linear(width, vocabulary)
    )


def tokens(vocabulary, count):
    return [torch.randint(vocabulary, (4, 16)) for _ in range(count)]


def after_passes(models, batches):
    # What a forward and a backward pass take, with everything imported.
    rf.compress(transformer(8, 1, 9), rf.Budget(params=0.7), inputs=tokens(9, 1)[0],
                calibration=tokens(9, 2), loss="cross_entropy")
    for model in models:
        model(batches[0]).square().mean().backward()
        model.zero_grad()
    return peak()
"""
)
DEPTH = (
    SETUP
    + """
array_store.LIMIT = 2**20
models, batches = [transformer(128, depth, 100) for depth in (4, 12)], tokens(100, 2)
before = after_passes(models, batches)
for model in models:
    rf.gather(model, batches, loss="cross_entropy")
    print(peak() - before)
"""
)
VOCABULARY = (
    SETUP
    + """
model, batches = transformer(32, 1, 20_000), tokens(20_000, 2)
before = after_passes([model], batches)
small = rf.compress(model, rf.Budget(params=0.5), inputs=batches[0], calibration=batches,
                    loss="cross_entropy")
assert small.plan.replaced
print(peak() - before)
"""
)


def peaks(script: str) -> list[int]:
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [int(line) for line in run.stdout.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_the_peak_of_moments_does_not_grow_with_the_depth() -> None:
    width = 128
    moments_of_a_block = 8 * (2 * (4 * width) ** 2 + 8 * width**2)
    few, many = peaks(DEPTH)
    assert many < few + 2 * moments_of_a_block  # with eight blocks more


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_a_large_vocabulary_takes_no_square_of_it() -> None:
    weight = 20_000 * 32 * 8  # of the head in float64, and the logits of a batch are as many
    (peak,) = peaks(VOCABULARY)
    assert peak < 50 * weight < 4 * 20_000**2
