"""The network of `rankfold demo --backend jax` in Flax NNX: its training and measurement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rankfold.adapters import timing
from rankfold.linalg import Array

_BATCH = 64
_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as PyTorch starts


class Network(nnx.Module):
    """A small VGG-like network for 8×8 grey images, channels last.

    Args:
        rngs: of the initial weights.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths = (1, 64, 128, 128, 192)
        self.convs = nnx.List(
            nnx.Conv(into, out, (3, 3), use_bias=False, kernel_init=_INIT, rngs=rngs)
            for into, out in pairwise(widths)
        )
        self.norms = nnx.List(nnx.BatchNorm(out, momentum=0.9, rngs=rngs) for out in widths[1:])
        self.hidden = nnx.Linear(192 * 2 * 2, 256, kernel_init=_INIT, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, 8, 8, 1) to (batch, 10)."""
        layers: Any = zip(self.convs, self.norms, strict=True)
        for depth, (conv, norm) in enumerate(layers):
            x = nnx.relu(norm(conv(x)))
            if depth % 2:
                x = _pooled(x)
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class JaxDemo:
    """Network of the demo; see `rankfold.cli.demo.DemoNetwork`.

    Args:
        seed: of the initial weights, the shuffling and the augmentation.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.head = "head"

    def network(self) -> nnx.Module:
        """An untrained network."""
        return Network(nnx.Rngs(self._seed))

    def train(
        self,
        model: nnx.Module,
        images: Array,
        labels: Array,
        *,
        epochs: int,
        learning_rate: float,
        advance: Callable[[], None],
    ) -> None:
        """Trains in place by AdamW with a one-cycle learning rate on randomly shifted images.

        Args:
            model: the network.
            images: (n, 1, 8, 8) float32.
            labels: (n,) integers.
            epochs: passes over the images.
            learning_rate: the highest.
            advance: called after each epoch.
        """
        rng = np.random.default_rng(self._seed)
        x = _channels_last(images)
        steps = max(2, epochs * (len(x) // _BATCH))
        schedule = optax.cosine_onecycle_schedule(steps, learning_rate, pct_start=0.3)
        rule = optax.adamw(schedule, weight_decay=0.05)
        optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
        model.train()  # type: ignore[no-untyped-call]  # Flax leaves it untyped
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x) - _BATCH + 1, _BATCH):
                batch = order[start : start + _BATCH]
                inputs = jnp.asarray(_shifted(x[batch], rng))
                _step(model, optimizer, inputs, jnp.asarray(labels[batch]))
            advance()
        model.eval()  # type: ignore[no-untyped-call]  # Flax leaves it untyped

    def accuracy(self, model: nnx.Module, images: Array, labels: Array) -> float:
        """The share of images classified right."""
        model.eval()  # type: ignore[no-untyped-call]  # Flax leaves it untyped
        predicted = np.asarray(_forward(model, jnp.asarray(_channels_last(images)))).argmax(axis=1)
        return float(np.mean(predicted == labels))

    def inputs(self, images: Array) -> jax.Array:
        """Example inputs: one image."""
        return jnp.asarray(_channels_last(images[:1]))

    def latencies(self, models: list[nnx.Module], images: Array) -> list[float]:
        """Median seconds of one compiled forward pass of each model, measured in turns."""
        x = jnp.asarray(_channels_last(images))
        passes = [partial(nnx.cached_partial(_forward, model), x) for model in models]
        return list(timing.medians(passes, timing.MODEL, jax.block_until_ready))


@nnx.jit
def _forward(model: Any, x: jax.Array) -> jax.Array:
    logits: jax.Array = model(x)
    return logits


@nnx.jit
def _step(model: Any, optimizer: Any, x: jax.Array, labels: jax.Array) -> None:
    def loss(model: Any) -> jax.Array:
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(model(x), labels)
        return losses.mean()

    optimizer.update(model, nnx.grad(loss)(model))


def _pooled(x: jax.Array) -> jax.Array:
    window = (1, 2, 2, 1)
    pooled: jax.Array = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    return pooled


def _channels_last(images: Array) -> Array:
    return np.moveaxis(images, 1, -1)


def _shifted(x: Array, rng: np.random.Generator) -> Array:
    down, right = rng.integers(0, 3, 2)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return padded[:, down : down + 8, right : right + 8]
