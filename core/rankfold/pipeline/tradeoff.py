"""The whole curve of cost against predicted loss in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankfold.adapters.base import ReadsLayers
from rankfold.calibration.batches import Loss
from rankfold.errors import RankfoldError
from rankfold.pipeline.api import plan
from rankfold.plan.tradeoff import Tradeoff
from rankfold.policies.budget import Budget
from rankfold.storage.moments_file import Moments


def tradeoff(  # noqa: D417 - the others are those of plan
    model: Any,
    *,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    calibration: Any = None,
    loss: Loss | None = None,
    moments: Moments | None = None,
    adapter: ReadsLayers | None = None,
) -> Tradeoff:
    """Return the least predicted loss of a model at every share of its cost.

    It costs what one plan by `Budget` costs: all layers are priced, and the curve is read off.
    Shares are of the multiply-accumulates where there are example inputs, else of the parameters.

    Args not listed here are those of `plan`.

    Args:
        model: the model.
        inputs: example inputs.

    Returns:
        The curve: `points`, `loss_at(share)`, and `share_at(loss)` for the way back.

    Raises:
        RankfoldError: as `plan`, or no layer can be made cheaper.

    Example:
        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 96))
        >>> curve = rf.tradeoff(model)
        >>> curve.loss_at(1.0), curve.loss_at(0.5) < curve.loss_at(0.25)
        (0.0, True)
    """
    budget = Budget(params=1.0) if inputs is None else Budget(macs=1.0)
    curve = plan(
        model,
        budget,
        inputs=inputs,
        methods=methods,
        include=include,
        exclude=exclude,
        seed=seed,
        calibration=calibration,
        loss=loss,
        moments=moments,
        adapter=adapter,
    ).tradeoff
    if curve is None:
        raise RankfoldError("tradeoff: no layer has anything cheaper on offer")
    return curve
