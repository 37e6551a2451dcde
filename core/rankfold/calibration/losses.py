"""What losses on the outputs of a model are to every framework, and how far two models are apart.

A framework's adapter draws labels and noise and differentiates; it brings outputs here as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankfold.calibration.batches import Calibration
from rankfold.errors import RankfoldError
from rankfold.faults import told
from rankfold.linalg import Array

_ENOUGH_EXAMPLES = 64
_MOST_DRAWS = 8


def draws(calibration: Calibration, total: int) -> int:
    """How often a random loss is drawn: with few examples their mean needs more than one."""
    if not isinstance(calibration.loss, str):
        return 1
    return max(1, min(_MOST_DRAWS, math.ceil(_ENOUGH_EXAMPLES / total)))


def logits_in(outputs: Any) -> Any:
    """What is to be the logits in an output.

    Args:
        outputs: an array, something with `.logits` or an entry "logits", or a sequence with them at
            its beginning.
    """
    found = outputs
    while isinstance(found, (tuple, list)) and found and not hasattr(found, "logits"):
        found = found[0]
    if isinstance(found, Mapping) and "logits" in found:
        return found["logits"]
    return getattr(found, "logits", found)


def no_logits(outputs: Any) -> RankfoldError:
    """What is raised where an output has no logits."""
    return RankfoldError(
        f"loss 'cross_entropy': no logits in an output of class {type(outputs).__name__}; pass "
        "loss='outputs' or a function of (outputs, batch)"
    )


def no_floats(outputs: Any, what: str) -> RankfoldError:
    """What is raised where an output has no floating-point arrays; `what` the framework's are."""
    return RankfoldError(
        f"loss: the model gives {type(outputs).__name__} without floating-point {what}; pass "
        "loss= a function of (outputs, batch)"
    )


def given(calibration: Calibration, index: int, outputs: Any, batch: Any) -> Any:
    """What a user's loss function gives for a batch.

    Raises:
        RankfoldError: it fails.
    """
    assert callable(calibration.loss)
    try:
        return calibration.loss(outputs, batch)
    except Exception as error:  # whatever a user's function raises
        raise RankfoldError(
            f"loss {calibration.loss_name!r}: it fails on batch {index} with {told(error)}"
        ) from error


def failure(index: int, error: BaseException) -> RankfoldError:
    """What is raised where a model fails on a batch."""
    return RankfoldError(f"calibration: the model fails on batch {index} with {told(error)}")


class Divergence:
    """The mean loss of a model and of the compressed one, added up batch by batch."""

    def __init__(self) -> None:
        self._apart, self._size = [0.0, 0.0], 0.0

    def add_logits(self, first: Array, second: Array) -> None:
        """Adds KL(first ‖ second) of logits (predictions, classes); one class is a sigmoid's."""
        if first.shape[1] == 1:
            first, second = (np.concatenate([x, np.zeros_like(x)], 1) for x in (first, second))
        p, q = _log_softmax(first), _log_softmax(second)
        share = np.exp(p)
        with np.errstate(invalid="ignore"):
            terms = np.where(share > 0, share * (p - q), 0.0)
        self._apart[1] += max(0.0, float(terms.sum()))
        self._size += len(first)

    def add_outputs(self, first: Array, second: Array) -> None:
        """Adds the squared distance of two outputs; only what is finite in the first counts."""
        known = np.isfinite(first)
        a, b = first[known].astype(np.float64), second[known].astype(np.float64)
        self._size += float(np.square(a).sum())
        self._apart[1] += float(np.square(a - b).sum())

    def add_losses(self, first: float, second: float) -> None:
        """Adds the losses of both on a batch."""
        self._size += 1.0
        self._apart[0] += first
        self._apart[1] += second

    @property
    def value(self) -> tuple[float, float]:
        """The mean of both; the first is 0 where the distance from the first is what counts."""
        size = max(self._size, 1e-300)
        return self._apart[0] / size, self._apart[1] / size


def _log_softmax(scores: Array) -> Array:
    scores = scores.astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
