"""`Budget`: the least loss within limits on parameters, MACs and latency, over the whole model.

Every allowed method at a well-spaced grid of ranks is an offer of a layer, and so is the layer as
it is. One offer per layer is chosen by mixed-integer linear programming (`knapsack`). With
calibration data the losses of the offers are in units of the model's loss, so that layers compare;
without, they are squared relative errors of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from rankfold.candidates import Cost, Group, Layer, Offer
from rankfold.contracts import Choice, Policy
from rankfold.errors import RankfoldError
from rankfold.hookspecs import hookimpl
from rankfold.knapsack import cheapest, least_share
from rankfold.ops import Array
from rankfold.policies.arguments import fraction

RANKFOLD_API = (1, 0)
_RESOURCES = ("params", "macs")


@dataclass(frozen=True)
class Budget:
    """The least loss at which the model keeps within every limit given.

    Args:
        params: parameters of the whole model, as a share of the original's; above 0, up to 1.
        macs: multiply-accumulates of all its layers, as a share.
        multiple_of: ranks are multiples of it where a layer has room for them.

    Raises:
        RankfoldError: no limit is given, or one is out of range.
    """

    params: float | None = None
    macs: float | None = None
    multiple_of: int = 1
    name: ClassVar[str] = "budget"
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in _RESOURCES:
            share = getattr(self, name)
            if share is None:
                continue
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise RankfoldError(f"Budget: {name} {share!r}; use a share above 0 and up to 1")
        if self.params is None and self.macs is None:
            raise RankfoldError("Budget: no limit; give params=, macs= or both")
        multiple = self.multiple_of
        if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
            raise RankfoldError(f"Budget: multiple_of {multiple!r}; use an int from 1 on")

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, all together.

        Raises:
            RankfoldError: the limits cannot be kept; the message names the smallest that can.
        """
        rest = layers.rest if isinstance(layers, Group) else Cost(0, 0)
        if self.macs is not None and any(not layer.traced for layer in layers):
            raise RankfoldError("Budget: macs= needs example inputs; pass inputs=")
        offers: list[list[Offer | None]] = []
        befores: list[Cost] = []
        for layer in layers:
            befores.append(layer.cost(layer.op))
            offers.append([None, *layer.offers(self.multiple_of)])
            layer.release()
        names = [name for name in _RESOURCES if getattr(self, name) is not None]
        costs = [
            np.array(
                [
                    [float(getattr(before if offer is None else offer.cost, n)) for n in names]
                    for offer in own
                ]
            )
            for own, before in zip(offers, befores, strict=True)
        ]
        total = {n: getattr(rest, n) + sum(getattr(b, n) for b in befores) for n in names}
        limits = np.array(
            [math.floor(getattr(self, n) * total[n] + 1e-9) - getattr(rest, n) for n in names],
            dtype=np.float64,
        )
        if not offers:
            return
        values = [np.array([0.0 if o is None else o.loss for o in own]) for own in offers]
        solution = cheapest(values, costs, limits) if (limits >= 0.0).all() else None
        if solution is None:
            raise self._infeasible(costs, rest, total, names)
        if isinstance(layers, Group):
            layers.notes.append(f"proven within {solution.gap:.2%} of the least loss on offer")
        for own, index in zip(offers, solution.chosen, strict=True):
            offer = own[index]
            if offer is None:
                cause = "no offer is cheaper" if len(own) == 1 else "kept by the budget"
                yield Choice(None, reason=cause)
            else:
                yield Choice(offer.method, offer.ranks)

    def _infeasible(
        self, costs: list[Array], rest: Cost, total: dict[str, int], names: list[str]
    ) -> RankfoldError:
        fixed = np.array([[float(getattr(rest, n)) for n in names]])
        asked = np.array([getattr(self, n) * total[n] for n in names])
        factor = least_share([*costs, fixed], asked)
        least = ", ".join(f"{n}={_up(getattr(self, n) * factor)}" for n in names)
        given = ", ".join(f"{n}={getattr(self, n)}" for n in names)
        return RankfoldError(
            f"Budget({given}) cannot be kept by this model with these methods and layers: the "
            f"smallest that can is {least}"
        )

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """`budget:SHARE` of the parameters."""
        return cls(params=fraction("budget", argument))


def _up(share: float) -> float:
    return math.ceil(share * 1e4 + 1e-6) / 1e4


@hookimpl
def rankfold_policies() -> Iterable[type[Policy]]:
    """Registers "budget"."""
    return (Budget,)
