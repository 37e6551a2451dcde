"""The three networks: a residual one with BatchNorm, one like VGG, and a language model."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

CONTEXT, VOCABULARY = 64, 128


class Block(nn.Module):
    """Two 3×3 convolutions around which the input is added."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or into != out:
            self.short = nn.Sequential(
                nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.short(x))


class ResNet(nn.Module):
    """Three stages of two blocks, 32, 64 and 128 channels."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        blocks = []
        into = widths[0]
        for stage, out in enumerate(widths):
            blocks += [Block(into, out, 1 if stage == 0 else 2), Block(out, out, 1)]
            into = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(into, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        return self.head(self.blocks(x).mean((2, 3)))


def vgg(classes: int, widths: tuple[int, ...] = (32, 64, 128)) -> nn.Module:
    """Pairs of 3×3 convolutions with biases and no normalisation, pooled, and two linear layers."""
    layers: list[nn.Module] = []
    into = 1
    for out in widths:
        for channels in (into, out):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        into = out
    layers += [nn.Flatten(), nn.Linear(into * 4, 256), nn.ReLU(), nn.Linear(256, classes)]
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


class Attention(nn.Module):
    """Causal self-attention of four heads and a feed-forward layer, both residual."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A language model of bytes."""

    def __init__(self, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Attention(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens) + self.places[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))
