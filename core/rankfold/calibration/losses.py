"""Losses on the outputs of a model, and the divergence of two models, for every framework.

A framework's adapter draws labels and noise and differentiates; it passes outputs as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankfold.calibration.batches import Calibration
from rankfold.calibration.input_mistakes import taken_as_arguments, told_of
from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold.linalg import Array

_ENOUGH_EXAMPLES = 64
"""Draws of a random loss, over all examples, whose mean gradient moment is steady enough."""
_MOST_DRAWS = 8
"""Draws per example at most: each is a backward pass, and says nothing new about the inputs."""

_TOO_FAR = {"outputs": 0.1, "cross_entropy": 0.3}
"""Divergence on held-out examples from which on a network is not the same any more. On networks
trained for real tasks, at 4 to 70 % of their multiply-accumulates, outputs that were that far off
gave 13 to 62 % of the original's answers to data of another kind, but for two of ten with 86 %;
nearer ones gave 73 to 100 %, but for one of seventeen with 35 %."""
_NUMBERS = 2**20
"""Numbers that a divergence is computed of at a time: 8 MiB in float64."""


def draws(calibration: Calibration, total: int) -> int:
    """Return how often a random loss is drawn: the mean over few examples takes several draws."""
    if not isinstance(calibration.loss, str):
        return 1
    return max(1, min(_MOST_DRAWS, math.ceil(_ENOUGH_EXAMPLES / total)))


def logits_in(outputs: Any) -> Any:
    """Return the logits in an output.

    Args:
        outputs: an array, something with `.logits` or an entry "logits", or a sequence with them at
            its beginning.
    """
    value = outputs
    while isinstance(value, (tuple, list)) and value and not hasattr(value, "logits"):
        value = value[0]
    if isinstance(value, Mapping) and "logits" in value:
        return value["logits"]
    return getattr(value, "logits", value)


def no_logits(outputs: Any) -> RankfoldError:
    """Return the error for an output without logits."""
    return RankfoldError(
        f"loss 'cross_entropy': no logits in an output of class {type(outputs).__name__}; pass "
        "loss='outputs' or a function of (outputs, batch)"
    )


def no_floats(outputs: Any, what: str) -> RankfoldError:
    """Return the error for an output without floats; `what` a framework calls its arrays."""
    return RankfoldError(
        f"loss: the model gives {type(outputs).__name__} without floating-point {what}; pass "
        "loss= a function of (outputs, batch)"
    )


def loss_of(calibration: Calibration, index: int, outputs: Any, batch: Any) -> Any:
    """Return the value of a user's loss function for a batch.

    Raises:
        RankfoldError: it fails.
    """
    assert callable(calibration.loss)
    try:
        return calibration.loss(outputs, batch)
    except Exception as error:  # whatever a user's function raises
        let_through(error)
        raise RankfoldError(
            f"loss {calibration.loss_name!r}: it fails on batch {index} with {told(error)}"
        ) from error


def failure(index: int, error: BaseException, inputs: Any = (), arrays: str = "") -> RankfoldError:
    """Return the error for a model that fails on a batch.

    Args:
        index: of the batch.
        error: what the model raised.
        inputs: what it was called with; nothing is said of them where none are passed.
        arrays: how arrays of NumPy become such as the framework takes; "" where it takes them.
    """
    return RankfoldError(
        f"calibration: the model fails on batch {index} with {told_of(error, inputs, arrays)}"
        f"{taken_as_arguments(inputs)}"
    )


def fails_in_training(count: int, error: BaseException) -> RankfoldError:
    """Return the error for a model that fails on a batch of examples that it is trained on."""
    return RankfoldError(
        f"distil: a model fails on a batch of {count} examples with {told(error)}; where it takes "
        "batches of one size, give batches of that size, of 64 examples at most"
    )


def other_outputs(first: Sequence[int], second: Sequence[int]) -> RankfoldError:
    """Return the error for two models whose outputs have other shapes."""
    return RankfoldError(
        f"an output has shape {tuple(first)} in the original and {tuple(second)} in the compressed "
        "model; give the model that it was compressed from"
    )


def estranged(calibration: Calibration, divergence: float) -> str | None:
    """Return a remark where a compressed model is so far off that it is another network.

    Args:
        calibration: names the loss; of a user's own function nothing is known.
        divergence: of the compressed model, on held-out examples.
    """
    loss = calibration.loss
    if not isinstance(loss, str) or divergence < _TOO_FAR[loss]:
        return None
    far = f"{divergence:.2g} nats" if loss == "cross_entropy" else f"{math.sqrt(divergence):.0%}"
    return (
        f"on held-out examples its outputs are {far} off the original's: it is not the same "
        "network any more; give it a larger budget, keep the layers that matter most with "
        "exclude=, or fine-tune it before use"
    )


@dataclass(frozen=True)
class OutputReader:
    """Functions that read a framework's outputs, as arrays on the host.

    Attributes:
        logits: of an output and the number of examples, (predictions, classes).
        floats: the floating-point arrays of an output.
        loss: the value of a user's function, of (calibration, index of the batch, output).
    """

    logits: Callable[[Any, int], Array]
    floats: Callable[[Any], Iterable[Array]]
    loss: Callable[[Calibration, int, Any], float]


class Divergence:
    """Mean loss of a model and of the compressed one, added up batch by batch."""

    def __init__(self) -> None:
        self._losses, self._size = [0.0, 0.0], 0.0

    def add(
        self, calibration: Calibration, index: int, first: Any, second: Any, read: OutputReader
    ) -> None:
        """Add the losses of both models on a batch.

        Args:
            calibration: of the batch.
            index: of the batch.
            first: outputs of the model.
            second: outputs of the compressed one.
            read: reads them.
        """
        if calibration.loss == "cross_entropy":
            count = calibration.examples_of(calibration.inputs[index])
            self.add_logits(read.logits(first, count), read.logits(second, count))
        elif calibration.loss == "outputs":
            for a, b in zip(read.floats(first), read.floats(second), strict=True):
                self.add_outputs(a, b)
        else:
            before, after = (read.loss(calibration, index, o) for o in (first, second))
            self.add_losses(before, after)

    def add_logits(self, first: Array, second: Array) -> None:
        """Add KL(first ‖ second) of logits (predictions, classes); one class is a sigmoid's."""
        if first.shape != second.shape:
            raise other_outputs(first.shape, second.shape)
        if first.shape[1] == 1:
            first, second = (np.concatenate([x, np.zeros_like(x)], 1) for x in (first, second))
        # A few predictions at a time: in float64 those of a large vocabulary take gigabytes.
        step = max(1, _NUMBERS // first.shape[1])
        total = sum(
            _divergence(first[start : start + step], second[start : start + step])
            for start in range(0, len(first), step)
        )
        self._losses[1] += max(0.0, total)
        self._size += len(first)

    def add_outputs(self, first: Array, second: Array) -> None:
        """Add the squared distance of two outputs; only what is finite in the first counts."""
        if first.shape != second.shape:
            raise other_outputs(first.shape, second.shape)
        first, second = first.reshape(-1), second.reshape(-1)
        for start in range(0, first.size, _NUMBERS):
            part = slice(start, start + _NUMBERS)
            finite = np.isfinite(first[part])
            a, b = (x[part][finite].astype(np.float64) for x in (first, second))
            self._size += float(np.square(a).sum())
            self._losses[1] += float(np.square(a - b).sum())

    def add_losses(self, first: float, second: float) -> None:
        """Add the losses of both on a batch."""
        self._size += 1.0
        self._losses[0] += first
        self._losses[1] += second

    @property
    def value(self) -> tuple[float, float]:
        """Mean losses of both; the first is 0 where distances from it are added."""
        size = max(self._size, 1e-300)
        return self._losses[0] / size, self._losses[1] / size


def _divergence(first: Array, second: Array) -> float:
    """Σ KL(first ‖ second) over predictions."""
    p, q = _log_softmax(first), _log_softmax(second)
    share = np.exp(p)
    with np.errstate(invalid="ignore"):
        terms = np.where(share > 0, share * (p - q), 0.0)
    return float(terms.sum())


def _log_softmax(scores: Array) -> Array:
    scores = scores.astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms
