"""Median times of layers and models by onnxruntime, with the options of a session in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto

from rankfold.adapters import timing
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Embedding, Extent, Linear, Op, channels
from rankfold.plugins import medians
from rankfold_onnx import runtime
from rankfold_onnx.stages import Stages, X, Y


def seconds(
    stages: Sequence[Stages | None],
    op: Op,
    dtype: np.dtype[np.generic],
    extents: Sequence[Extent],
) -> tuple[float, ...]:
    """Return median seconds of stages, one call per extent.

    Args:
        stages: those of the layer itself first; None stands for what cannot be built.
        op: the layer.
        dtype: of its input.
        extents: of its inputs.
    """
    inputs = [_input(op, extent, dtype) for extent in extents]

    def passing(put: Stages | None) -> Callable[[], object] | None:
        if put is None:
            return None
        try:
            running = runtime.session(put.as_model())
        except runtime.NotRunError:
            return None
        return lambda: [running.run([Y], {X: x}) for x in inputs]

    return medians([passing(put) for put in stages], timing.LAYER)


def model_seconds(models: Sequence[ModelProto], inputs: Any) -> tuple[float, ...]:
    """Return median seconds of one pass of each model."""
    feeds = runtime.feeds_of(models[0], inputs)

    def passing(
        running: onnxruntime.InferenceSession, fed: Mapping[str, Any]
    ) -> Callable[[], object]:
        return lambda: running.run(None, fed)

    return medians([passing(runtime.session(m), feeds) for m in models], timing.MODEL)


def built(build: Callable[[], Stages]) -> Stages | None:
    """Return stages; None where they are refused."""
    try:
        return build()
    except Refused:
        return None


def _input(op: Op, extent: Extent, dtype: np.dtype[np.generic]) -> Array:
    into = channels(op)[1]
    rng = np.random.default_rng(0)
    if isinstance(op, Embedding):
        return rng.integers(0, into, extent)
    shape = (*extent, into) if isinstance(op, Linear) else (extent[0], into, *extent[1:])
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
