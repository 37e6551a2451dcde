"""Losses on the outputs of a model, and the distance of two models in them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankfold.calibration import losses
from rankfold.calibration.batches import Calibration
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.linalg import Array
from rankfold_jax.functional.pure_function import PureModel


def floats(outputs: Any) -> list[jax.Array]:
    """Return the floating-point arrays of an output.

    Raises:
        RankfoldError: there is none.
    """
    floating = [leaf for leaf in jax.tree.leaves(outputs) if _is_float(leaf)]
    if not floating:
        raise losses.no_floats(outputs, "arrays")
    return floating


def logits(outputs: Any, count: int) -> jax.Array:
    """Return the logits of a classifier, in float32 or float64: (predictions, classes).

    Args:
        outputs: an array, something with `.logits` or an entry "logits", or a sequence with them at
            its beginning. The classes are on the last axis.
        count: the number of examples; a vector of that length has one logit each.

    Raises:
        RankfoldError: there are no logits.
    """
    values = losses.logits_in(outputs)
    if not _is_float(values) or jnp.ndim(values) == 0:
        raise losses.no_logits(outputs)
    # One logit an example: a binary classifier.
    if values.ndim == 1 and len(values) == count:
        values = values[:, None]
    values = values if values.dtype == jnp.float64 else values.astype(jnp.float32)
    scores: jax.Array = values.reshape(-1, values.shape[-1])
    return scores


def drawn(name: str, outputs: Any, count: int, key: jax.Array) -> jax.Array:
    """Draw a random loss once, summed over the examples.

    Args:
        name: "cross_entropy" or "outputs".
        outputs: of the model.
        count: the number of examples.
        key: draws.

    Raises:
        RankfoldError: the outputs do not suit the loss.
    """
    if name == "outputs":
        terms = []
        for index, output in enumerate(floats(outputs)):
            # The gradient of noise · output is the noise, whose second moment is the identity in
            # expectation. `fold_in` gives each output noise of its own.
            noise = jax.random.normal(jax.random.fold_in(key, index), output.shape)
            terms.append((output.astype(noise.dtype) * noise).sum())
        return jnp.stack(terms).sum()
    scores = logits(outputs, count)
    if scores.shape[1] == 1:
        # Labels are drawn from the model's own prediction; no gradient goes through the draw.
        labels = jax.random.bernoulli(key, jax.nn.sigmoid(jax.lax.stop_gradient(scores)))
        # log σ(x) for label 1 and log(1 - σ(x)) = log σ(-x) for label 0, without overflow.
        return -jax.nn.log_sigmoid(jnp.where(labels, scores, -scores)).sum()
    picked = jax.random.categorical(key, jax.lax.stop_gradient(scores), axis=1)
    shares = jax.nn.log_softmax(scores, axis=1)
    return -jnp.take_along_axis(shares, picked[:, None], axis=1).sum()


def loss_of(calibration: Calibration, index: int, outputs: Any, batch: Any) -> jax.Array:
    """Return the value of a user's loss function for a batch.

    Raises:
        RankfoldError: it fails or gives something else than an array of one element.
    """
    name = calibration.loss_name
    value = losses.loss_of(calibration, index, outputs, batch)
    if not isinstance(value, jax.Array) or value.size != 1 or not _is_float(value):
        what = f"shape {value.shape}" if isinstance(value, jax.Array) else str(type(value))
        raise RankfoldError(
            f"loss {name!r} gave {what}; return a floating-point JAX array with one element"
        )
    return value.reshape(())


def divergence(
    first: PureModel, second: PureModel, calibration: Calibration
) -> tuple[float, float]:
    """Return the mean loss of the model and of the compressed one, for `Calibrates.divergence`.

    Raises:
        RankfoldError: a model fails on a batch.
    """
    total = losses.Divergence()
    both = zip(outputs_of(first, calibration), outputs_of(second, calibration), strict=True)
    for index, (a, b) in enumerate(both):
        total.add(calibration, index, a, b, READER)
    return total.value


def distance(loss: Any, target: Any, outputs: Any, count: int) -> jax.Array:
    """Return the loss of a step of distillation; see `rankfold.adapters.distils.Distils`.

    Args:
        loss: the loss of a `Calibration`.
        target: outputs of the original.
        outputs: of the compressed model.
        count: the number of examples.

    Raises:
        RankfoldError: the outputs do not suit the loss, or differ in shape.
    """
    if loss == "cross_entropy":
        first, second = logits(target, count), logits(outputs, count)
        if first.shape[1] == 1:  # one class is a sigmoid's
            first, second = (jnp.pad(scores, ((0, 0), (0, 1))) for scores in (first, second))
        p, q = jax.nn.log_softmax(first, 1), jax.nn.log_softmax(second, 1)
        return jnp.where(p > -jnp.inf, jnp.exp(p) * (p - q), 0.0).sum(1).mean()
    terms, squares = [], []
    for first, second in zip(floats(target), floats(outputs), strict=True):
        if first.shape != second.shape:
            raise losses.other_outputs(first.shape, second.shape)
        finite = jnp.isfinite(first)
        wide = jnp.promote_types(first.dtype, jnp.float32)
        apart = jnp.where(finite, second.astype(wide) - first.astype(wide), 0.0)
        terms.append(jnp.square(apart).sum())
        squares.append(jnp.square(jnp.where(finite, first, 0.0).astype(wide)).sum())
    return jnp.stack(terms).sum() / jnp.maximum(jnp.stack(squares).sum(), 1e-30)


def outputs_of(flow: PureModel, calibration: Calibration) -> list[Any]:
    """Return the outputs of each batch."""
    every = []
    for index, (program, arrays) in enumerate(flow.programs(calibration.inputs)):
        try:
            # Compiled: what stands around the arrays was noted by the trace that `programs` made.
            outputs = program.rebuilt(program.compiled(flow.values, arrays))
        except Exception as error:  # whatever the model raises on these inputs
            let_through(error)
            raise losses.failure(index, error, calibration.inputs[index]) from error
        every.append(outputs)
    return every


def _host(x: jax.Array) -> Array:
    return np.asarray(x)


def _loss_value(calibration: Calibration, index: int, outputs: Any) -> float:
    return float(loss_of(calibration, index, outputs, calibration.batches[index]))


READER = losses.OutputReader(
    logits=lambda outputs, count: _host(logits(outputs, count)),
    floats=lambda outputs: map(_host, floats(outputs)),
    loss=_loss_value,
)


def _is_float(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.floating)
