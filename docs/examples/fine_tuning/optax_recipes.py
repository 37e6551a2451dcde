"""Fine-tuning a compressed Flax NNX model with optax: labels, parameter groups, distillation.

    python docs/examples/fine_tuning/optax_recipes.py

trains a network on scikit-learn's digits, compresses it to a tenth of its multiply-accumulates by
its weights alone, and fine-tunes it in several ways, each for the same number of steps. Prints the
test errors; a few minutes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import rankfold as rf

SHARE, STEPS, RATE = 0.1, 120, 2e-3
TEMPERATURE = 3.0
Loss = Callable[[nnx.Module, jax.Array, jax.Array], jax.Array]


class Network(nnx.Module):
    """Four convolutions with BatchNorm."""

    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        widths = (1, 48, 96, 96, 96)
        pairs = list(itertools.pairwise(widths))
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in pairs])
        self.norms = nnx.List([nnx.BatchNorm(o, momentum=0.9, rngs=rngs) for _, o in pairs])
        self.head = nnx.Linear(widths[-1], 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, 10) of images (batch, 8, 8, 1)."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = nnx.relu(norm(conv(x)))
            if i == 1:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.mean((1, 2)))


def digits() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Images and labels to train on, and to test on."""
    data = load_digits()
    images = jnp.asarray(data.images[..., None] / 16, jnp.float32)
    labels = jnp.asarray(data.target)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[449:], order[:449]
    return images[train], labels[train], images[test], labels[test]


TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = digits()


def labelled(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy with the labels."""
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
    return losses.mean()


def distilled(teacher: nnx.Module) -> Loss:
    """Half the labels, half the softened predictions of the original (Hinton, 1503.02531)."""
    graph, state = nnx.split(teacher)

    def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        original = nnx.merge(graph, state)
        original.eval()
        scores = model(x)
        soft: jax.Array = optax.kl_divergence(
            jax.nn.log_softmax(scores / TEMPERATURE), jax.nn.softmax(original(x) / TEMPERATURE)
        ).mean()
        hard: jax.Array = optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()
        return 0.5 * hard + 0.5 * TEMPERATURE**2 * soft

    return loss


def schedule(rate: float, steps: int) -> optax.Schedule:
    """One cycle."""
    return optax.cosine_onecycle_schedule(steps, rate)


def alike(steps: int) -> optax.GradientTransformation:
    """AdamW for all parameters."""
    return optax.adamw(schedule(RATE, steps), weight_decay=0.02)


def grouped(small: rf.Compressed, steps: int) -> optax.GradientTransformation:
    """The factors with the full learning rate; the rest slowly; no weight decay."""

    def label(path: tuple[object, ...], _: object) -> str:
        names = [getattr(entry, "key", getattr(entry, "name", entry)) for entry in path]
        factor = small.plan.layer_of(".".join(map(str, names)))
        return "others" if factor is None else "factors"

    rates = {"factors": RATE, "others": 0.3 * RATE}
    rules = {name: optax.adam(schedule(rate, steps)) for name, rate in rates.items()}
    return optax.multi_transform(rules, lambda params: jax.tree.map_with_path(label, params))


def train(
    model: nnx.Module, loss: Loss, steps: int, rule: optax.GradientTransformation, seed: int
) -> None:
    """In place."""
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

    @nnx.jit
    def step(
        model: nnx.Module, optimizer: nnx.Optimizer[nnx.Module], x: jax.Array, y: jax.Array
    ) -> None:
        grads = nnx.grad(loss)(model, x, y)
        optimizer.update(model, grads)

    rng = np.random.default_rng(seed)
    model.train()
    for _ in range(steps):
        chosen = rng.integers(len(TRAIN_X), size=64)
        step(model, optimizer, TRAIN_X[chosen], TRAIN_Y[chosen])
    model.eval()


def error(model: nnx.Module) -> float:
    """Test images classified wrong, in per cent."""
    model.eval()
    return 100.0 * float((nnx.jit(lambda m, x: m(x))(model, TEST_X).argmax(1) != TEST_Y).mean())


def compress(model: nnx.Module, share: float, batches: object = None) -> rf.Compressed:
    """To a share of the MACs."""
    return rf.compress(model, rf.Budget(macs=share), inputs=TEST_X[:1], calibration=batches)


def recipes(seed: int, steps: int) -> dict[str, float]:
    """Test errors of the original, and of the compressed model after each recipe."""
    model = Network(seed)
    train(model, labelled, 5 * steps, alike(5 * steps), seed)
    errors = {"original": error(model)}
    small = compress(model, SHARE)
    errors["compressed"] = error(small.model)
    soft = distilled(model)
    for name, loss, rule in (
        ("labels", labelled, alike(steps)),
        ("parameter groups", labelled, grouped(small, steps)),
        ("distillation", soft, alike(steps)),
        ("distillation, parameter groups", soft, grouped(small, steps)),
    ):
        tuned = nnx.clone(small.model)
        train(tuned, loss, steps, rule, seed)
        errors[name] = error(tuned)
    first = compress(model, 2 * SHARE)
    train(first.model, labelled, steps // 2, alike(steps // 2), seed)
    second = compress(first.expanded(model), SHARE)
    rest = steps - steps // 2
    train(second.model, labelled, rest, alike(rest), seed)
    errors["labels, in two steps"] = error(second.model)
    informed = compress(model, SHARE, [TRAIN_X[i : i + 64] for i in range(0, 256, 64)])
    errors["compressed with data"] = error(informed.model)
    train(informed.model, labelled, steps, alike(steps), seed)
    errors["compressed with data, labels"] = error(informed.model)
    return errors


def main() -> None:
    """Prints the mean test error of each recipe."""
    parser = argparse.ArgumentParser(description="recipes for fine-tuning, compared")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    errors = [recipes(seed, options.steps) for seed in range(options.seeds)]
    print(f"test error in per cent, mean and standard deviation over {options.seeds} seeds")
    for name in errors[0]:
        values = [draw[name] for draw in errors]
        print(f"{name:32} {np.mean(values):5.2f} ± {np.std(values):.2f}")


if __name__ == "__main__":
    main()
