"""`Budget`: the least loss within limits on the whole model, or the least cost within a loss.

Every allowed method at a well-spaced grid of ranks is an offer of a layer, and so is the layer as
it is. One offer per layer is chosen by mixed-integer linear programming (`knapsack`); what that
leaves of the limits is used by raising ranks between those on offer (`remainder`). With
calibration data the losses of the offers are in units of the model's loss, so that layers compare;
without, they are squared relative errors of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, Self

import numpy as np

from rankfold.decompose.base import RankTuple
from rankfold.errors import Infeasible, RankfoldError, Refused
from rankfold.layers.candidates import Offer, Priced
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each
from rankfold.linalg import Array
from rankfold.policies.base import Allocation, Choice, Judges, Outcome, Policy, fraction
from rankfold.policies.budget_curve import tradeoff
from rankfold.policies.budget_remainder import Rungs, raised
from rankfold.policies.budget_search import cheapest_good_enough, fast_enough
from rankfold.policies.knapsack import Solution, cheapest, least_share
from rankfold.progress import progress

FAST_MULTIPLE = 16
"""Under a limit on latency ranks are multiples of this: others cost 6 to 32 % of speed."""
_SHARES = ("params", "macs", "latency", "error", "drop")
_RESOURCES = ("params", "macs", "latency")


@dataclass(frozen=True, repr=False)
class Budget:
    """The least loss at which the model keeps within every limit given, never above one.

    Args:
        params: parameters of the whole model, as a share of the original's; above 0, up to 1.
        macs: multiply-accumulates of all its layers, as a share.
        latency: the time of one forward pass on the example inputs, as a share, predicted from
            times of the very layers. No layer that measures slower is replaced.
        error: the cheapest model instead, in MACs where there are example inputs and in parameters
            elsewhere, whose predicted loss is within this: the root of the summed losses of all
            layers over that of dropping their weights altogether.
        drop: the cheapest model instead whose `evaluate(model)` is at most this much below that of
            the original. For `compress`; found by bisection.
        evaluate: gives the score of a model, higher for better ones.
        distil_steps: steps of `rankfold.distil` that each of these models is trained on the
            calibration examples before it is evaluated; 0 for none.
        multiple_of: ranks are multiples of it where a layer has room for them.

    Raises:
        RankfoldError: no limit is given, one is out of range, or two exclude each other.

    Example:
        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 96))
        >>> before, after = rf.plan(model, rf.Budget(params=0.5)).params
        >>> before, after <= 0.5 * before
        (9376, True)
    """

    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    error: float | None = None
    drop: float | None = None
    evaluate: Callable[[Any], float] | None = None
    multiple_of: int = 1
    distil_steps: int = 0
    name: ClassVar[str] = "budget"
    judges: ClassVar[Judges] = "model"

    def __post_init__(self) -> None:
        for name in _SHARES:
            share = getattr(self, name)
            if share is None:
                continue
            number = isinstance(share, Real) and not isinstance(share, bool)
            if name == "drop":
                if not number or not 0.0 <= share < math.inf:
                    raise RankfoldError(f"Budget: drop {share!r}; use a number from 0 on")
            elif not number or not 0.0 < share <= 1.0:
                raise RankfoldError(f"Budget: {name} {share!r}; use a share above 0 and up to 1")
        if all(getattr(self, name) is None for name in _SHARES):
            raise RankfoldError("Budget: no limit; give params=, macs=, latency=, error= or drop=")
        if (self.drop is None) != (self.evaluate is None):
            raise RankfoldError("Budget: drop= and evaluate= go together; give both")
        if self.evaluate is not None and not callable(self.evaluate):
            raise RankfoldError(f"Budget: evaluate {self.evaluate!r}; give a function of a model")
        if self.drop is not None and self.error is not None:
            raise RankfoldError("Budget: drop= and error= exclude each other; give one of them")
        for name, least in (("multiple_of", 1), ("distil_steps", 0)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise RankfoldError(f"Budget: {name} {count!r}; use an int from {least} on")
        if self.distil_steps and self.drop is None:
            raise RankfoldError(
                "Budget: distil_steps= is for drop=; else give the result to rankfold.distil()"
            )

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        shown = (f"{name}={_shown(value)}" for name, value, usual in values if value != usual)
        return f"Budget({', '.join(shown)})"

    @property
    def allows_interpolation(self) -> bool:
        """Whether parameters are limited, or times that are measured."""
        return self.params is not None or self.latency is not None

    @property
    def looks_at(self) -> Literal["plans", "times", "models"]:
        """What has to be seen of the models that `search` tries out."""
        if self.drop is not None:
            return "models"
        return "plans" if self.latency is None else "times"

    def search(
        self, model: Any, attempt: Callable[[Policy], Outcome], resource: Literal["params", "macs"]
    ) -> Outcome:
        """The model within all limits: measured for `latency`, evaluated for `drop`.

        Raises:
            RankfoldError: no model is good enough, or `evaluate` fails.
        """

        def within(budget: Budget) -> Outcome:
            if budget.latency is None:
                return attempt(budget)
            return fast_enough(
                lambda latency: attempt(replace(budget, latency=latency)), budget.latency
            )

        if self.drop is None or self.evaluate is None:
            return within(self)
        most = (self.macs if resource == "macs" else self.params) or 1.0

        def at(share: float) -> Outcome:
            limits: dict[str, Any] = {"drop": None, "evaluate": None, "distil_steps": 0}
            limits[resource] = share
            return within(replace(self, **limits))

        return cheapest_good_enough(model, at, self.evaluate, self.drop, most, resource)

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer; see `allocate_model`."""
        yield from self.allocate_model(LayerGroup.of(layers)).choices

    def allocate_model(self, group: LayerGroup) -> Allocation:
        """One choice per layer, all together.

        Raises:
            RankfoldError: the limits cannot be kept; the message names the smallest that can.
        """
        if self.drop is not None:
            raise RankfoldError("Budget: drop= tries out models; use rankfold.compress()")
        wants_inputs = [n for n in ("macs", "latency") if getattr(self, n) is not None]
        if wants_inputs and any(not layer.traced for layer in group):
            raise RankfoldError(f"Budget: {wants_inputs[0]}= needs example inputs; pass inputs=")
        if self.macs is not None and group and group.original_cost.macs == 0:
            raise RankfoldError("Budget: macs= has nothing to limit: no layer counts any")
        problem = _Problem(self, group)
        if not problem.offers:
            problem.check_feasible()
            return Allocation(())
        solution = problem.solved()
        ranks = problem.raised(solution)
        choices = []
        for layer, (items, index) in enumerate(zip(problem.offers, solution.chosen, strict=True)):
            offer = items[index]
            if offer is not None:
                choices.append(Choice(offer.method, ranks[layer]))
            elif len(items) > 1:
                choices.append(Choice(None, reason="kept by the budget"))
            else:
                choices.append(Choice(None, reason=problem.nothing(layer)))
        return Allocation(
            tuple(choices),
            (f"proven within {solution.gap:.2%} of the best on offer",),
            None if self.latency is None else problem.predicted_seconds(solution),
            tradeoff(group, problem.offers, solution.chosen),
        )

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """`budget:SHARE` of the parameters; see `policy_from_text` for the others."""
        return cls(params=fraction("budget", argument))


def _rounded_up(share: float) -> float:
    """Share rounded up to four digits; the whole model is always enough."""
    return min(1.0, math.ceil(share * 1e4 + 1e-6) / 1e4)


def _shown(value: object) -> str:
    return getattr(value, "__qualname__", "a function") if callable(value) else repr(value)


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


class _Problem:
    """Offers of all layers, their costs, and the limits."""

    def __init__(self, budget: Budget, group: LayerGroup) -> None:
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
