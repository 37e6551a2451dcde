"""The network of `rankfold demo` in PyTorch: its training, fine-tuning and measurement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rankfold.adapters import timing
from rankfold.linalg import Array

_BATCH = 64


class TorchDemo:
    """A small VGG-like network for 8×8 grey images.

    Args:
        seed: of the initial weights, the shuffling and the augmentation.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # The path of the last layer in the `nn.Sequential` of `network`, which gives the logits.
        self.head = "17"

    def network(self) -> nn.Module:
        """Return an untrained network."""
        # Layers draw their initial weights from the default generator.
        torch.manual_seed(self._seed)
        return nn.Sequential(
            *_block(1, 64),
            *_block(64, 128),
            nn.MaxPool2d(2),
            *_block(128, 128),
            *_block(128, 192),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(192 * 2 * 2, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )

    def train(
        self,
        model: nn.Module,
        images: Array,
        labels: Array,
        *,
        epochs: int,
        learning_rate: float,
        advance: Callable[[], None],
    ) -> None:
        """Train in place by AdamW with a one-cycle learning rate on randomly shifted images.

        Args:
            model: the network.
            images: (n, 1, 8, 8) float32.
            labels: (n,) integers.
            epochs: passes over the images.
            learning_rate: the highest.
            advance: called after each epoch.
        """
        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        generator = torch.Generator().manual_seed(self._seed)
        torch.manual_seed(self._seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
        steps = epochs * -(-len(x) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        model.train()
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=generator)
            for batch in order.split(_BATCH):  # type: ignore[no-untyped-call]  # untyped in torch
                # One shift for the whole batch, by at most a pixel: `_shifted` crops the padded
                # image.
                shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
                loss = functional.cross_entropy(model(_shifted(x[batch], *shift)), y[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                schedule.step()
            advance()
        model.eval()

    def accuracy(self, model: nn.Module, images: Array, labels: Array) -> float:
        """Return the share of images classified right."""
        model.eval()
        with torch.no_grad():
            predicted = model(torch.from_numpy(images)).argmax(dim=1).numpy()
        return float(np.mean(predicted == labels))

    def inputs(self, images: Array) -> torch.Tensor:
        """Return example inputs: one image."""
        return torch.from_numpy(images[:1])

    def latencies(self, models: list[nn.Module], images: Array) -> list[float]:
        """Return median seconds of one forward pass of each model, measured in turns."""
        x = torch.from_numpy(images)
        with torch.no_grad():
            return list(timing.medians([partial(model, x) for model in models], timing.MODEL))


def _block(into: int, out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()


def _shifted(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    # 8×8 images become 10×10; the crop of 8 begins 1 further than the shift.
    padded = functional.pad(x, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]
