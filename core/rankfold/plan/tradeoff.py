"""Trade-off between cost and loss in a plan: the curve that a budget saw."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsFloat

import msgspec
import numpy as np

from rankfold.errors import RankfoldError
from rankfold.plan.data_frame import data_frame
from rankfold.report.notebook import folded_table


class Tradeoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least predicted loss of the whole model at each share of its cost.

    Attributes:
        resource: what the shares are of.
        measure: "error" for the root of the mean squared relative error of the weights of all
            layers that the budget decided on; "loss" for the predicted rise of the loss, with
            calibration data.
        points: (share, loss), the original first.
        plan: (share, loss) of what was chosen, before what is left of the limits is used up.

    Example:
        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 96))
        >>> curve = rf.tradeoff(model, inputs=torch.randn(1, 48))
        >>> curve.loss_at(1.0) <= curve.loss_at(0.5) <= curve.loss_at(0.25)
        True
    """

    resource: Literal["params", "macs"]
    measure: Literal["error", "loss"]
    points: tuple[tuple[float, float], ...]
    plan: tuple[float, float]

    def loss_at(self, share: float) -> float:
        """Return the predicted loss at a share of the cost, between the nearest two points.

        Raises:
            RankfoldError: no model on offer is as cheap, or the share is above that of the
                original.
        """
        shares, losses = self._ascending()
        if not isinstance(share, SupportsFloat) or not shares[0] <= share <= max(1.0, shares[-1]):
            least = f"{shares[0]:.4g}, the cheapest on offer"
            raise RankfoldError(f"loss_at: share {share!r}; use one from {least}, to 1")
        return float(np.interp(share, shares, losses))

    def share_at(self, loss: float) -> float:
        """Return the least share of the cost with a predicted loss of at most that.

        Raises:
            RankfoldError: the loss is below 0 or not a number.
        """
        if not isinstance(loss, SupportsFloat) or not loss >= 0.0:
            raise RankfoldError(f"share_at: loss {loss!r}; use a number from 0 on")
        shares, losses = self._ascending()
        return float(np.interp(loss, losses[::-1], shares[::-1]))

    def _ascending(self) -> tuple[list[float], list[float]]:
        ordered = self.points[::-1]
        return [share for share, _ in ordered], [loss for _, loss in ordered]

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each point: share and loss.

        Raises:
            RankfoldError: pandas is not installed.
        """
        return data_frame(self.points, ["share", "loss"])

    def __repr__(self) -> str:
        share, loss = self.points[-1] if self.points else (1.0, 0.0)
        return (
            f"Tradeoff({len(self.points)} points of predicted {self.measure} against "
            f"{self.resource}, down to a share of {share:.3g} with {loss:.3g})"
        )

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("", repr(self))]

    def _repr_html_(self) -> str | None:
        rows = [(f"{share:.1%}", f"{loss:.4g}") for share, loss in self.points]
        columns = {f"share of {self.resource}": True, f"predicted {self.measure}": True}
        return folded_table(repr(self), columns, rows)

    @property
    def why_not(self) -> str:
        """Say what is wrong with a curve from elsewhere; "" where nothing is."""
        numbers = [number for point in (*self.points, self.plan) for number in point]
        bad = [number for number in numbers if not (math.isfinite(number) and number >= 0.0)]
        if not self.points:
            return "no points; the original is the first"
        return f"{bad[0]}; use finite numbers from 0 on" if bad else ""
