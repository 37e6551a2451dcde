"""Models of the example framework, which computes with NumPy, and adapters of it that do more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rankfold_numpy.adapter import NumpyAdapter, walk
from rankfold_numpy.framework import Dense, Model

from rankfold.calibration.moments import LayerMoments
from rankfold.pipeline.allocation import Task
from rankfold.pipeline.calibrate import Calibrated
from rankfold.pipeline.model_layers import layer_paths, read_layers
from rankfold.pipeline.session import Session, open_session, settings_of
from rankfold.policies.base import Policy
from rankfold.policies.selection import Selection


def kernel(into: int, out: int) -> Any:
    """A matrix of rank 5 and a little noise."""
    rng = np.random.default_rng(out)
    low = rng.standard_normal((into, 5)) @ rng.standard_normal((5, out))
    return (low + 0.1 * rng.standard_normal((into, out))).astype(np.float32)


def model(*sizes: int) -> Any:
    return Model([Dense(kernel(into, out)) for into, out in pairwise(sizes)])


class Gathers(NumpyAdapter):  # type: ignore[misc]  # the example has no types
    """An adapter that gathers the moments of dense layers, and compares outputs."""

    def moments(
        self, model: Any, calibration: Any, layers: Any, rng: Any, advance: Any
    ) -> Mapping[str, LayerMoments]:
        gathered = {}
        x = np.concatenate(calibration.inputs).astype(np.float64)
        for path, layer in walk(model):
            if path in layers:
                mean = x.mean(axis=0)[None]
                gathered[path] = LayerMoments((x.T @ x / len(x))[None], mean, None, len(x), 1.0)
            x = layer(x)
        for _ in calibration.batches:
            advance("")
        return gathered

    def run_paired(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("no run beside the original is expected")

    def refilled(self, model: Any, path: str, op: Any) -> Any:
        raise AssertionError("no refit is expected")

    def divergence(self, model: Any, small: Any, calibration: Any) -> tuple[float, float]:
        x = np.concatenate(calibration.inputs)
        y = model(x)
        return 0.0, float(((small(x) - y) ** 2).sum() / (y**2).sum())


def session_of(
    network: Any, *, adapter: Any = None, inputs: Any = None, methods: Sequence[str] = ("svd",)
) -> Session:
    settings = settings_of(methods, "balanced", 0)
    return open_session(network, inputs, settings, adapter or NumpyAdapter())


def task_of(
    session: Session,
    policy: Policy,
    *,
    calibrated: Calibrated | None = None,
    barred: Mapping[str, str] | None = None,
    **patterns: Any,
) -> Task:
    """Ask a policy about the layers of a model, as a call does."""
    calibrated, paths = calibrated or Calibrated(), layer_paths(session)
    layers = read_layers(session, calibrated, paths)
    return Task(session, calibrated, layers, paths, Selection(policy, **patterns), barred or {})
