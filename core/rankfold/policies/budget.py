"""`Budget`: the least loss within limits on the whole model, or the least cost within a loss.

Every allowed method at a well-spaced grid of ranks is an offer of a layer, and so is the layer as
it is. One offer per layer is chosen (`budget_problem`). With calibration data the losses of the
offers are in units of the model's loss, so that layers compare; without, they are squared relative
errors of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar, Literal, Self

from rankfold.errors import RankfoldError
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.policies.base import Allocation, Choice, Judges, Outcome, Policy, fraction
from rankfold.policies.budget_curve import tradeoff
from rankfold.policies.budget_problem import BudgetProblem, Limits
from rankfold.policies.budget_search import cheapest_good_enough, fast_enough

_SHARES = ("params", "macs", "latency", "error", "drop")


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
        """Part of the models that `search` tries out that has to be seen."""
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
        limits = Limits(self.params, self.macs, self.latency, self.error, self.multiple_of)
        problem = BudgetProblem(limits, group)
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


def _shown(value: object) -> str:
    return getattr(value, "__qualname__", "a function") if callable(value) else repr(value)
