"""What a plan keeps of the choice between cost and loss: the curve that a budget saw."""

from __future__ import annotations

import math
from typing import Literal

import msgspec


class Tradeoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least predicted loss of the whole model at each share of its cost.

    Attributes:
        resource: what the shares are of.
        measure: "error" for the root of the mean squared relative error of the weights of all
            layers that the budget decided on; "loss" for the predicted rise of the loss, with
            calibration data.
        points: (share, loss), the original first.
        plan: (share, loss) of what was chosen, before what is left of the limits is used up.
    """

    resource: Literal["params", "macs"]
    measure: Literal["error", "loss"]
    points: tuple[tuple[float, float], ...]
    plan: tuple[float, float]

    @property
    def why_not(self) -> str:
        """Say what is wrong with a curve from elsewhere; "" where nothing is."""
        numbers = [number for point in (*self.points, self.plan) for number in point]
        bad = [number for number in numbers if not (math.isfinite(number) and number >= 0.0)]
        return f"{bad[0]}; use finite numbers from 0 on" if bad else ""
