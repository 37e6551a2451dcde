"""Checks of an adapter that implements `Distils`."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankfold.adapters.base import Adapter
from rankfold.adapters.capabilities import capabilities
from rankfold.calibration.batches import Calibration
from rankfold.ops import Op
from rankfold.testing.assertions import fresh_adapter, only_path, unchanged
from rankfold.testing.cases import decomposed, methods, probe, supported
from rankfold.testing.check import check
from rankfold.testing.harness import Harness, Unsupported

# Each is compiled anew where frameworks compile, so there is a loss for each layer and not two.
_LOSSES = {"linear": "cross_entropy", "embedding": "outputs", "convolution 2-d": "outputs"}
_STEPS = 8
"""Steps of a student, at the rate below, in which the loss of a single layer falls."""
_RATE = 0.03
_TOLERANCE = 1e-3
"""Relative; frameworks compute losses in float32."""


@check("read", "reduced_rank", "moments")
def check_distil(harness: Harness) -> None:
    """A student comes nearer to the original, and neither of the models it was made of changes."""
    for name, op, model in supported(harness, names=_LOSSES):
        _distilled(harness, name, op, model)


def _distilled(harness: Harness, name: str, op: Op, model: Any) -> None:
    adapter: Any = _distilling(fresh_adapter(harness, model, op))
    path = only_path(adapter, model)
    chain = decomposed(op, methods(op)[0], full=False).chain
    small = adapter.replace(model, {path: adapter.build(model, path, chain)}, inplace=False)
    before = harness.state(model), harness.state(small)
    x = probe(op)
    calibration = Calibration.of([harness.inputs(x)], None, _LOSSES[name])
    first = adapter.divergence(model, small, calibration)[1]
    with adapter.student(model, small, calibration) as student:
        _agrees(name, student.held_out_loss(), first, "loss of the student at first")
        student.keep()
        # Rates that are far too high lead away; what was noted is where it goes back to.
        student.step(harness.inputs(x), 30.0)
        student.restore()
        _agrees(name, student.held_out_loss(), first, "loss of the student that was restored")
        for _ in range(_STEPS):
            student.step(harness.inputs(x), _RATE)
        last = student.held_out_loss()
        student.keep()
        student.step(harness.inputs(x), _RATE)
        trained = student.kept()
    assert last < first, f"{name}: a loss of {last:.3g} after training, of {first:.3g} before"
    measured = adapter.divergence(model, trained, calibration)[1]
    _agrees(name, measured, last, "loss of the model that is given back")
    for state, current in zip(before, (model, small), strict=True):
        unchanged(name, state, harness.state(current))
    shapes = {key: np.shape(value) for key, value in before[1].items()}
    after = {key: np.shape(value) for key, value in harness.state(trained).items()}
    assert after == shapes, f"{name}: other parameters than before"


def _distilling(adapter: Adapter) -> Adapter:
    if capabilities(adapter).distils is None:
        raise Unsupported("distillation: its adapter does not distil")
    return adapter


def _agrees(name: str, actual: float, expected: float, what: str) -> None:
    off = abs(actual - expected) / max(abs(expected), 1e-30)
    assert off <= _TOLERANCE, f"{name}: the {what} is {actual:.3g}, not {expected:.3g}"
