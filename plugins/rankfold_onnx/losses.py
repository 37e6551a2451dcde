"""Losses of a change of a model's outputs, and the distance of two models in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from rankfold.calibration.losses import loss_of
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.plugins import Calibration, Divergence, OutputReader
from rankfold_onnx import runtime
from rankfold_onnx.graph import op_of
from rankfold_onnx.runs import batch_error

_IMAGE_AXES = (4, 5)
"""(batch, classes, height, width), and with a depth: outputs of segmentation."""
_LEAST = 1e-7
"""Least probability: in float32 there is nothing between 1 and 1 less than that."""


def squash_of(model: ModelProto) -> str:
    """Return the type of the node that makes probabilities of the first output; "" for logits."""
    producers = {name: node for node in model.graph.node for name in node.output}
    name = model.graph.output[0].name if model.graph.output else ""
    while name in producers and op_of(producers[name]) == "Identity":
        name = producers[name].input[0]
    squash = op_of(producers[name]) if name in producers else ""
    return squash if squash in ("Softmax", "Sigmoid") else ""


def change(
    calibration: Calibration,
    index: int,
    count: int,
    first: Sequence[Any],
    second: Sequence[Any],
    squash: str,
) -> float:
    """Return what a small change of the outputs of a batch is worth, to second order.

    Args:
        calibration: names the loss.
        index: of the batch.
        count: of its examples.
        first: outputs without the change.
        second: outputs with it.
        squash: what makes probabilities of the first output; see `squash_of`.

    Returns:
        For "outputs" the squared change, summed over examples; for "cross_entropy" twice the KL
        divergence, δᵀFδ with the Fisher information F; for a function of the user's the squared
        change of the loss, summed over the examples before it is squared.
    """
    total = Divergence()
    if calibration.loss == "cross_entropy":
        before, after = (_logits(outputs, count, squash) for outputs in (first, second))
        total.add_logits(before, after)
        return 2.0 * total.value[1] * len(before)
    if calibration.loss == "outputs":
        return sum(_squared(a, b) for a, b in zip(_floats(first), _floats(second), strict=True))
    losses = (float(_loss(calibration, index, outputs)) for outputs in (first, second))
    before_loss, after_loss = losses
    return float((count * (after_loss - before_loss)) ** 2)


def divergence(
    model: ModelProto, small: ModelProto, calibration: Calibration
) -> tuple[float, float]:
    """Return the mean losses of the model and of the compressed one (`Calibrates.divergence`)."""
    total = Divergence()
    sessions, squash = [runtime.session(m) for m in (model, small)], squash_of(model)
    read = OutputReader(
        logits=lambda outputs, count: _logits(outputs, count, squash),
        floats=_floats,
        loss=lambda calibration, index, outputs: float(_loss(calibration, index, outputs)),
    )
    for index, inputs in enumerate(calibration.inputs):
        try:
            feeds = runtime.feeds_of(model, inputs)
            first, second = (runtime.run(running, None, feeds) for running in sessions)
        except RankfoldError as error:
            raise batch_error(index, error) from error
        total.add(calibration, index, first, second, read)
    return total.value


def _loss(calibration: Calibration, index: int, outputs: Sequence[Any]) -> Array:
    judged = outputs[0] if len(outputs) == 1 else list(outputs)
    value = np.asarray(loss_of(calibration, index, judged, calibration.batches[index]))
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise RankfoldError(
            f"loss {calibration.loss_name!r} gave shape {value.shape}; return one number"
        )
    return value.reshape(())


def _squared(first: Array, second: Array) -> float:
    finite = np.isfinite(first)
    difference = second[finite].astype(np.float64) - first[finite]
    return float(difference @ difference)


def _floats(outputs: Sequence[Any]) -> list[Array]:
    arrays = [o for o in outputs if isinstance(o, np.ndarray)]
    floating = [np.asarray(o) for o in arrays if np.issubdtype(o.dtype, np.floating)]
    if not floating:
        raise RankfoldError(
            "loss: the model gives no floating-point outputs; pass loss= a function of (outputs, "
            "batch)"
        )
    return [a if a.dtype == np.float64 else a.astype(np.float32) for a in floating]


def _logits(outputs: Sequence[Any], count: int, squash: str) -> Array:
    """Return the first output as logits (predictions, classes)."""
    scores = _floats(outputs)[0]
    if scores.ndim == 0:
        raise RankfoldError("loss 'cross_entropy': the first output has no axis of classes")
    if scores.ndim == 1 and len(scores) == count:
        scores = scores[:, None]
    if scores.ndim in _IMAGE_AXES:
        scores = np.moveaxis(scores, 1, -1)
    if squash == "Softmax":
        return np.log(np.maximum(scores, _LEAST)).reshape(-1, scores.shape[-1])
    if squash == "Sigmoid":  # a yes or no for each number
        shares = np.clip(scores.astype(np.float64), _LEAST, 1.0 - _LEAST)
        return np.log(shares / (1.0 - shares)).reshape(-1, 1)
    return scores.reshape(-1, scores.shape[-1])
