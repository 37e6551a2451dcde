"""Losses on the outputs of a model, and how far two models are apart in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankfold.calibration import Calibration
from rankfold.errors import RankfoldError
from rankfold.ops import Array
from rankfold_jax.flow import Flow, failure

_ENOUGH_EXAMPLES = 64
_MOST_DRAWS = 8


def draws(calibration: Calibration, total: int) -> int:
    """How often a random loss is drawn: with few examples their mean needs more than one."""
    if not isinstance(calibration.loss, str):
        return 1
    return max(1, min(_MOST_DRAWS, math.ceil(_ENOUGH_EXAMPLES / total)))


def floats(outputs: Any) -> list[jax.Array]:
    """The floating-point arrays of an output.

    Raises:
        RankfoldError: there is none.
    """
    found = [leaf for leaf in jax.tree.leaves(outputs) if _is_float(leaf)]
    if not found:
        raise RankfoldError(
            f"loss: the model gives {type(outputs).__name__} without floating-point arrays; pass "
            "loss= a function of (outputs, batch)"
        )
    return found


def logits(outputs: Any, count: int) -> jax.Array:
    """The logits of a classifier, in float32 or float64: (predictions, classes).

    Args:
        outputs: an array, something with `.logits` or an entry "logits", or a sequence with them at
            its beginning. The classes are on the last axis.
        count: the number of examples; a vector of that length has one logit each.

    Raises:
        RankfoldError: there are no logits.
    """
    found = outputs
    while isinstance(found, tuple | list) and found and not hasattr(found, "logits"):
        found = found[0]
    if isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    else:
        found = getattr(found, "logits", found)
    if not _is_float(found) or jnp.ndim(found) == 0:
        raise RankfoldError(
            f"loss 'cross_entropy': no logits in an output of class {type(outputs).__name__}; pass "
            "loss='outputs' or a function of (outputs, batch)"
        )
    if found.ndim == 1 and len(found) == count:
        found = found[:, None]
    found = found if found.dtype == jnp.float64 else found.astype(jnp.float32)
    scores: jax.Array = found.reshape(-1, found.shape[-1])
    return scores


def drawn(name: str, outputs: Any, count: int, key: jax.Array) -> jax.Array:
    """One draw of a random loss, summed over the examples.

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
        for place, found in enumerate(floats(outputs)):
            noise = jax.random.normal(jax.random.fold_in(key, place), found.shape)
            terms.append((found.astype(noise.dtype) * noise).sum())
        return jnp.stack(terms).sum()
    scores = logits(outputs, count)
    if scores.shape[1] == 1:
        labels = jax.random.bernoulli(key, jax.nn.sigmoid(jax.lax.stop_gradient(scores)))
        return -jax.nn.log_sigmoid(jnp.where(labels, scores, -scores)).sum()
    picked = jax.random.categorical(key, jax.lax.stop_gradient(scores), axis=1)
    shares = jax.nn.log_softmax(scores, axis=1)
    return -jnp.take_along_axis(shares, picked[:, None], axis=1).sum()


def given(calibration: Calibration, index: int, outputs: Any, batch: Any) -> jax.Array:
    """What a user's loss function gives for a batch.

    Raises:
        RankfoldError: it fails or gives something else than an array of one element.
    """
    name = calibration.loss_name
    assert callable(calibration.loss)
    try:
        value = calibration.loss(outputs, batch)
    except Exception as error:  # whatever a user's function raises
        raise RankfoldError(
            f"loss {name!r}: it fails on batch {index} with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, jax.Array) or value.size != 1 or not _is_float(value):
        what = f"shape {value.shape}" if isinstance(value, jax.Array) else str(type(value))
        raise RankfoldError(
            f"loss {name!r} gave {what}; return a floating-point JAX array with one element"
        )
    return value.reshape(())


def divergence(first: Flow, second: Flow, calibration: Calibration) -> tuple[float, float]:
    """The mean loss of the model and of the compressed one; see `rankfold.contracts.DataAware`.

    Raises:
        RankfoldError: a model fails on a batch.
    """
    apart, size = [0.0, 0.0], 0.0
    both = zip(_outputs(first, calibration), _outputs(second, calibration), strict=True)
    for index, ((a, count), (b, _)) in enumerate(both):
        if calibration.loss == "cross_entropy":
            distance, rows = _kl(np.asarray(logits(a, count)), np.asarray(logits(b, count)))
            size += rows
            apart[1] += distance
        elif calibration.loss == "outputs":
            for x, y in zip(map(_double, floats(a)), map(_double, floats(b)), strict=True):
                known = np.isfinite(x)
                size += float(np.square(x[known]).sum())
                apart[1] += float(np.square(x[known] - y[known]).sum())
        else:
            size += 1.0
            batch = calibration.batches[index]
            for which, outputs in enumerate((a, b)):
                apart[which] += float(given(calibration, index, outputs, batch))
    return apart[0] / max(size, 1e-300), apart[1] / max(size, 1e-300)


def _outputs(flow: Flow, calibration: Calibration) -> list[tuple[Any, int]]:
    """The outputs of each batch, and how many examples it has."""
    found = []
    for index, (program, arrays) in enumerate(flow.programs(calibration.inputs)):
        try:
            outputs = program.rebuilt(program.compiled(flow.values, arrays))
        except Exception as error:  # whatever the model raises on these inputs
            raise failure(index, error) from error
        found.append((outputs, program.given.examples))
    return found


def _kl(first: Array, second: Array) -> tuple[float, int]:
    if first.shape[1] == 1:
        first, second = (np.concatenate([x, np.zeros_like(x)], 1) for x in (first, second))
    p, q = _log_softmax(first), _log_softmax(second)
    share = np.exp(p)
    with np.errstate(invalid="ignore"):
        terms = np.where(share > 0, share * (p - q), 0.0)
    return max(0.0, float(terms.sum())), len(first)


def _log_softmax(scores: Array) -> Array:
    scores = scores.astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _double(x: jax.Array) -> Array:
    return np.asarray(x).astype(np.float64)


def _is_float(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.floating)
