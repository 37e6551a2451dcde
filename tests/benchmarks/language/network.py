"""The language model, trained once and kept in a file, and the same with wider layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from tests.benchmarks.accuracy import data
from tests.benchmarks.accuracy.data import Data
from tests.benchmarks.accuracy.networks import Attention, Transformer
from tests.benchmarks.accuracy.training import train
from torch import nn
from torch.nn import functional

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


class _Joint(nn.Module):
    """A block whose q, k and v are one layer: decomposed, they share the first factor."""

    def __init__(self, block: Attention) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = block.heads, block.norm1, block.norm2
        layers = block.q, block.k, block.v
        self.qkv = nn.Linear(block.q.in_features, sum(layer.out_features for layer in layers))
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([layer.weight for layer in layers]))
            self.qkv.bias.copy_(torch.cat([layer.bias for layer in layers]))
        self.out, self.up, self.down = block.out, block.up, block.down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def joint(model: nn.Module) -> nn.Module:
    """Return a copy that computes the same with one layer for q, k and v in each block."""
    copied = cast(Transformer, copy.deepcopy(model))
    copied.blocks = nn.Sequential(*(_Joint(cast(Attention, block)) for block in copied.blocks))
    return copied.eval()
