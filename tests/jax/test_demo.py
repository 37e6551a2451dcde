"""The parts of the demo's network: shapes, training, accuracy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rankfold_jax.demo import JaxDemo, Network


class Tiny(nnx.Module):
    def __init__(self) -> None:
        self.head = nnx.Linear(64, 10, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x.reshape(len(x), -1))


def test_the_network_gives_a_score_for_each_class() -> None:
    demo = JaxDemo(0)
    images = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
    x = demo.inputs(images)
    np.testing.assert_array_equal(x[0, ..., 0], images[0, 0])
    network: Any = nnx.eval_shape(demo.network)
    assert isinstance(network, Network)
    assert getattr(network, demo.head).out_features == 10
    graph, state = nnx.split(network)
    y = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, x)
    assert y.shape == (1, 10)


def test_training_lowers_the_loss_and_is_that_of_its_seed() -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((70, 1, 8, 8)).astype(np.float32)
    labels = np.arange(70) % 10
    models, epochs = (Tiny(), Tiny()), []
    for model in models:
        JaxDemo(0).train(
            model, images, labels, epochs=4, learning_rate=0.01, advance=lambda: epochs.append(1)
        )
    assert len(epochs) == 8
    first, second = (np.asarray(model.head.kernel[...]) for model in models)
    np.testing.assert_array_equal(first, second)

    def loss(model: Tiny) -> float:
        scores = np.asarray(model(jnp.asarray(images)))
        scores = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        return -float(scores[np.arange(70), labels].mean())

    assert loss(models[0]) < loss(Tiny())


def test_accuracy_is_the_share_of_images_that_are_right() -> None:
    class Brightest(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x.reshape(len(x), -1)[:, :10]

    images = np.zeros((4, 1, 8, 8), np.float32)
    for image, label in zip(images, [3, 2, 0, 9], strict=True):
        image[0, label // 8, label % 8] = 1
    assert JaxDemo(0).accuracy(Brightest(), images, np.array([3, 1, 0, 9])) == 0.75
