"""Stage 2 of a call: second moments of every layer, from calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankfold.calibration.batches import Calibration, Loss
from rankfold.calibration.moment_checks import Mismatch, check_moments
from rankfold.calibration.moments import FEWEST, predictions
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import of_adapter
from rankfold.ops import Op
from rankfold.pipeline.session import Session
from rankfold.progress import progress
from rankfold.storage.moments_file import Moments


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Calibration batches and the moments of the layers on them.

    Attributes:
        batches: of calibration data; None where there are none, or too few to serve.
        moments: of the layers on them; None without.
        remarks: what the plan says of it.
    """

    batches: Calibration | None = None
    moments: Moments | None = None
    remarks: tuple[str, ...] = ()


def calibrate(
    session: Session, calibration: Any, loss: Loss | None, moments: Moments | None
) -> Calibrated:
    """Take or gather the moments of all layers.

    Args:
        session: of the model.
        calibration: the caller's batches; None without.
        loss: what the outputs are judged by.
        moments: gathered before, in place of a pass over the batches.

    Raises:
        RankfoldError: the data does not fit the model, or the adapter gathers no moments.
    """
    if moments is not None and not isinstance(moments, Moments):
        raise RankfoldError(
            f"moments: {type(moments).__name__}; give what rankfold.gather() returned"
        )
    if moments is not None:
        _check_moments(session, moments)
    if calibration is None:
        if loss is not None:
            raise RankfoldError("loss= needs calibration data; pass calibration=")
        return Calibrated(moments=moments)
    if session.can.calibrates is None:
        raise RankfoldError(f"{session.can.name} gathers no moments: leave calibration= out")
    batches = session.can.calibration(calibration, session.inputs, loss)
    if moments is not None:
        return Calibrated(batches, moments)
    # Moments that were handed over spare this pass; the batches then serve refits and measurements.
    ops = _readable(session)
    rng = np.random.default_rng(session.settings.seed)
    with progress("calibrating", len(batches.batches)) as advance, of_adapter(session.adapter):
        gathered = session.can.calibrates.moments(session.model, batches, ops, rng, advance)
    seen = predictions(gathered, ops)
    # So few predictions show too little to weigh by. The call goes on as without data, and the plan
    # says so.
    if seen < FEWEST:
        remark = f"calibration is not used: {seen} predictions; give {FEWEST}"
        return Calibrated(remarks=(remark,))
    return Calibrated(batches, Moments(gathered, batches.loss_name))


def _readable(session: Session) -> Mapping[str, Op]:
    ops: dict[str, Op] = {}
    for path in session.layer_classes:
        try:
            ops[path] = session.read(path)
        except Refused:
            continue
    return ops


def _check_moments(session: Session, moments: Moments) -> None:
    for path in session.layer_classes:
        if path in moments:
            try:
                check_moments(session.read(path), moments[path])
            # Layers that cannot be read are left alone anyway; only a layer of another shape is the
            # caller's mistake.
            except Refused as refused:
                if isinstance(refused, Mismatch):
                    raise RankfoldError(f"moments: layer {path!r}: {refused.reason}") from None
    if session.layer_classes and not any(path in moments for path in session.layer_classes):
        raise RankfoldError(
            f"moments: of {', '.join(list(moments)[:3])} ..., none of which is a layer of this "
            "model; gather them for it"
        )
