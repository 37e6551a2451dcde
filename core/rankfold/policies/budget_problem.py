"""The problem that a budget poses: offers of all layers with losses and costs, under limits.

One offer per layer is chosen by mixed-integer linear programming (`knapsack`); what that leaves of
the limits is used by raising ranks between those on offer (`budget_remainder`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rankfold.decompose.base import RankTuple
from rankfold.errors import Infeasible, Refused
from rankfold.layers.candidates import Offer, Priced
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each
from rankfold.linalg import Array
from rankfold.policies.budget_remainder import Rungs, raised
from rankfold.policies.knapsack import Solution, cheapest, least_share
from rankfold.progress import progress

FAST_MULTIPLE = 16
"""Under a limit on latency ranks are multiples of this: others cost 6 to 32 % of speed."""
_RESOURCES = ("params", "macs", "latency")


@dataclass(frozen=True)
class Limits:
    """The limits of a `Budget` on one model, None where there is none; see there.

    Attributes:
        params: of its parameters, as a share.
        macs: of its multiply-accumulates, as a share.
        latency: of the time of a pass, as a share.
        error: of the root of the summed losses, as a share; the least cost is wanted then.
        multiple_of: of the ranks.
    """

    params: float | None
    macs: float | None
    latency: float | None
    error: float | None
    multiple_of: int


def _priced(multiple: int, layer: Layer, *, with_worth: bool) -> tuple[Priced, float]:
    """Offers of a layer, and the loss of dropping it where that is wanted (else 0)."""
    priced = layer.priced(multiple), layer.loss_if_dropped if with_worth else 0.0
    layer.release()
    return priced


def _interpolated(timed: Sequence[Offer], macs: int) -> float:
    """The seconds of a method at other ranks, from those at the ranks that were measured.

    Beyond these it takes its time in proportion to the MACs, which is no less than it will take.
    """
    # Measured times are noisy: the running maximum makes them rise with the MACs, so that a higher
    # rank is never predicted to be faster than a lower one.
    points = sorted({offer.cost.macs: offer.seconds for offer in timed}.items())
    counts, seconds = zip(*points, strict=True)
    if macs > counts[-1]:
        return float(max(seconds) * macs / max(1, counts[-1]))
    return float(np.interp(macs, counts, np.maximum.accumulate(seconds)))


class BudgetProblem:
    """Offers of all layers, their costs, and the limits on the model that they are part of.

    Args:
        budget: the limits.
        group: the layers, and what surrounds them.

    Attributes:
        offers: of each layer, the layer as it is (None) before what may take its place.
    """

    def __init__(self, budget: Limits, group: LayerGroup) -> None:
        # Units: a loss is in the model's loss with calibration data, else a squared relative error
        # of the weight, and `worth` sums the same of dropping each layer, so that error² · worth
        # is a limit in the unit of the losses. Costs are parameters, MACs and seconds. Item 0 of a
        # layer is the layer as it is, with loss 0; where the loss is limited, the price to be
        # minimised is MACs if they are counted, else parameters.
        self._budget = budget
        self.offers: list[list[Offer | None]] = []
        costs: list[list[list[float]]] = []
        self._values: list[Array] = []
        self._prices: list[Array] = []
        worth = 0.0
        timed = budget.latency is not None
        self._names = [name for name in _RESOURCES if getattr(budget, name) is not None]
        multiple = max(FAST_MULTIPLE, budget.multiple_of) if timed else budget.multiple_of
        first_seconds = 0.0
        self._traced = all(layer.traced for layer in group)
        priced = partial(_priced, multiple, with_worth=budget.error is not None)
        self._layers = list(group)
        self._priced: list[Priced] = []
        self._seconds: list[float] = []
        self._multiple = multiple
        with progress("pricing", len(self._layers)) as advance:
            for layer, (offered, layer_worth) in zip(group, each(group, priced), strict=True):
                advance(layer.path)
                self._priced.append(offered)
                cost = layer.cost(layer.op)
                seconds, offers = 0.0, offered.offers
                if timed:
                    seconds, offers = layer.timed_offers(*offered.fronts)
                items: list[Offer | None] = [None, *offers]
                as_it_is = Offer("", (), cost, 0.0, seconds)
                first_seconds += seconds
                self._seconds.append(seconds)
                self.offers.append(items)
                costs.append([self._cost(offer or as_it_is) for offer in items])
                self._values.append(np.array([0.0 if o is None else o.loss for o in items]))
                price = [
                    o.cost.macs if self._traced else o.cost.params for o in (as_it_is, *offers)
                ]
                self._prices.append(np.array(price, dtype=np.float64))
                worth += layer_worth
                layer.release()
        self._costs = [np.array(cost, dtype=np.float64) for cost in costs]
        self._set_limits(group, first_seconds)
        self._worth = worth
        self._added = np.zeros(len(self._names))

    def _set_limits(self, group: LayerGroup, first_seconds: float) -> None:
        # A limit is a share of the whole model, of which these layers are a part: what the rest of
        # it costs is fixed and comes off the limit. The layers were timed one by one, the model as
        # a whole; where the layers add up to more (overheads count once each) their sum is taken
        # for the model, so that the rest never has a negative time. 1 + 1e-12 is for the rounding
        # of share·total: a share of 1.0 must admit the model as it is.
        total = {
            "params": float(group.original_cost.params),
            "macs": float(group.original_cost.macs),
        }
        fixed = {
            "params": float(group.cost_elsewhere.params),
            "macs": float(group.cost_elsewhere.macs),
        }
        if "latency" in self._names:
            model_seconds = max(group.model_seconds(), first_seconds)
            total["latency"], fixed["latency"] = model_seconds, model_seconds - first_seconds
        self._fixed = np.array([fixed[name] for name in self._names])
        shares = [getattr(self._budget, name) for name in self._names]
        self._targets = np.array([s * total[n] for s, n in zip(shares, self._names, strict=True)])
        self._limits = self._targets * (1.0 + 1e-12) - self._fixed

    def nothing(self, layer_index: int) -> str:
        """Reason why a layer has no offer; its methods may have failed."""
        timed = self._budget.latency is not None
        failures = self._priced[layer_index].failures.values()
        return "; ".join(("nothing faster" if timed else "nothing cheaper", *failures))

    def raised(self, solution: Solution) -> dict[int, RankTuple]:
        """The ranks of the layers that are decomposed, with what the offers leave of the limits."""
        chosen = dict(enumerate(solution.chosen))
        rungs = {
            layer_index: self._rungs(layer_index, o)
            for layer_index, i in chosen.items()
            if (o := self.offers[layer_index][i])
        }
        if self._budget.error is not None:  # what is wanted there is the least cost
            return {layer_index: rung.ranks for layer_index, rung in rungs.items()}
        spent = sum(self._costs[layer_index][index] for layer_index, index in chosen.items())
        room, scale = self._limits - spent, np.maximum(self._limits, 1e-300)
        ranks = dict(zip(rungs, raised(list(rungs.values()), room, scale), strict=True))
        for layer_index, rung in rungs.items():
            before, after = rung.cost(rung.ranks), rung.cost(ranks[layer_index])
            assert before is not None
            assert after is not None
            self._added += after - before
        return ranks

    def _rungs(self, layer_index: int, offer: Offer) -> Rungs:
        layer = self._layers[layer_index]
        same = [o for o in self.offers[layer_index] if o is not None and o.method == offer.method]

        def cost(ranks: RankTuple) -> Array | None:
            cost = layer.template_cost(offer.method, ranks)
            seconds = _interpolated(same, cost.macs) if self._budget.latency is not None else 0.0
            if layer.why_not_smaller(cost) is not None or seconds > self._seconds[layer_index]:
                return None
            return np.array(self._cost(replace(offer, ranks=ranks, cost=cost, seconds=seconds)))

        losses = self._priced[layer_index].losses[offer.method]
        try:
            most = layer.methods[offer.method].max_ranks(layer.costs.outline)
        except Refused:  # a plugin's fault; its ranks stay as they were offered
            most = offer.ranks
        if len(most) != len(offer.ranks):
            most = offer.ranks
        return Rungs(offer.ranks, most, self._multiple, losses, cost)

    def solved(self) -> Solution:
        """The choice; or the error that names the smallest limits there are."""
        solution = None
        if (self._limits >= 0.0).all():
            error = self._budget.error
            if error is None:
                solution = cheapest(self._values, self._costs, self._limits)
            else:
                solution = self._within(error)
        if solution is not None:
            return solution
        raise self._infeasible()

    def check_feasible(self) -> None:
        """Raises the error of `solved` where what is not to be chosen exceeds a limit."""
        if not (self._limits >= 0.0).all():
            raise self._infeasible()

    def _infeasible(self) -> Infeasible:
        factor = least_share([*self._costs, self._fixed[None]], self._targets)
        least = ", ".join(
            f"{name}={_rounded_up(getattr(self._budget, name) * factor)}" for name in self._names
        )
        limits = ", ".join(f"{name}={getattr(self._budget, name)}" for name in self._names)
        return Infeasible(
            f"Budget({limits}) cannot be kept by this model with these methods and layers: the "
            f"smallest that can is {least}",
            factor,
        )

    def predicted_seconds(self, solution: Solution) -> tuple[float, float]:
        """Seconds of the model (before, after) as the times of its layers have it."""
        index = self._names.index("latency")
        assert self._budget.latency is not None
        before = self._targets[index] / self._budget.latency
        after = self._fixed[index] + sum(
            cost[item, index] for cost, item in zip(self._costs, solution.chosen, strict=True)
        )
        return float(before), float(after + self._added[index])

    def _within(self, error: float) -> Solution | None:
        """The least cost within a loss and whatever limits there are besides."""
        limits = np.append(self._limits, error**2 * self._worth)
        costs = [
            np.column_stack([cost.reshape(len(values), -1), values])
            for cost, values in zip(self._costs, self._values, strict=True)
        ]
        return cheapest(self._prices, costs, limits)

    def _cost(self, offer: Offer) -> list[float]:
        every = {"params": float(offer.cost.params), "macs": float(offer.cost.macs)}
        every["latency"] = offer.seconds
        return [every[name] for name in self._names]


def _rounded_up(share: float) -> float:
    """Share rounded up to four digits; the whole model is always enough."""
    return min(1.0, math.ceil(share * 1e4 + 1e-6) / 1e4)
