"""The language model, trained once and kept in a file."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.benchmarks.accuracy import data
from tests.benchmarks.accuracy.data import Data
from tests.benchmarks.accuracy.networks import Transformer
from tests.benchmarks.accuracy.training import train
from torch import nn

WIDTH, DEPTH = 384, 12
_WINDOWS, _BATCH = 16_000, 32
"""Of training text, each seen once: a million bytes in 500 steps."""
_RATE = 1e-3
_SEED = 0


def text() -> Data:
    """Windows of the Python standard library's modules; see `data.source_text`."""
    return data.source_text(train=_WINDOWS, test=1000)


def trained(file: Path) -> nn.Module:
    """Return the model in a file; where there is none, train one and write it there."""
    torch.manual_seed(_SEED)
    model = Transformer(WIDTH, DEPTH)
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    train(model, text(), epochs=1, rate=_RATE, seed=_SEED, size=_BATCH)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    torch.save(model.state_dict(), partial)
    partial.rename(file)
    return model
