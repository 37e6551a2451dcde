"""Budgets that models are tried out for: a drop of a score, and a measured time.

A score is not monotone in the budget, but nearly: the share of the cost is bisected on a
logarithmic scale between the smallest that is feasible and the whole model. A limit on the time is
tightened by as much as the model that was planned within it measures above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from rankfold.errors import Infeasible, RankfoldError
from rankfold.faults import shown
from rankfold.plan.plan import Plan, Trial
from rankfold.policies.budget import Budget
from rankfold.progress import progress

TRIALS = 8
_LEAST = 0.01
_CLOSE = 1.02
_TIGHTENED = 3
_MARGIN = 0.97


@dataclass(frozen=True, eq=False)
class Attempt:
    """A model tried out.

    Attributes:
        model: a copy with the replacements; None where none was wanted.
        plan: of it.
        modules: the replacements, by path.
    """

    model: Any
    plan: Plan
    modules: Mapping[str, Any]


def search(
    budget: Budget, model: Any, attempt: Callable[[Budget], Attempt], resource: str
) -> Attempt:
    """The cheapest model found whose score is good enough; its plan has every trial.

    Args:
        budget: with `drop` and `evaluate`.
        model: the original.
        attempt: compresses the original within a budget.
        resource: what is to become cheap, "params" or "macs".

    Raises:
        RankfoldError: `evaluate` fails or gives no finite number, or no trial is good enough.
    """
    assert budget.drop is not None
    first = _score(budget, model)
    trials = [Trial(share=1.0, score=first, kept=True)]
    best: Attempt | None = None

    def tried(share: float) -> Attempt | None:
        assert budget.drop is not None
        found = attempt(_within(budget, resource, share))
        score = _score(budget, found.model)
        good = score >= first - budget.drop
        trials.append(Trial(share=share, score=score, kept=good))
        return found if good else None

    most = getattr(budget, resource) or 1.0
    low, high = _LEAST * most, most
    with progress("trying", TRIALS) as advance:
        for _ in range(TRIALS):
            share = math.sqrt(low * high)
            advance(f"{resource} {share:.3g}")
            try:
                good = tried(share)
            except Infeasible as error:
                low = min(share * error.factor, high)
                continue
            if good is None:
                low = share
            else:
                best, high = good, share
            if high / low < _CLOSE:
                break
    best = best or tried(most)
    if best is None:
        found = max(trial.score for trial in trials[1:])
        raise RankfoldError(
            f"Budget(drop={budget.drop}): the best of {len(trials) - 1} smaller models scores "
            f"{found:.4g}, the original {first:.4g}; allow a larger drop"
        )
    return replace(best, plan=msgspec.structs.replace(best.plan, trials=tuple(trials)))


def fast_enough(attempt: Callable[[Budget], Attempt], budget: Budget) -> Attempt:
    """The first model that measures within the limit on the time, or the fastest of a few.

    Args:
        attempt: compresses the original within a budget.
        budget: with or without `latency`.
    """
    best = attempt(budget)
    limit = budget.latency
    for _ in range(_TIGHTENED):
        measured = best.plan.latency
        if budget.latency is None or limit is None or measured is None:
            return best
        if measured <= budget.latency:
            return best
        limit *= _MARGIN * budget.latency / measured
        try:
            found = attempt(replace(budget, latency=limit))
        except Infeasible:
            break
        if found.plan.latency is not None and found.plan.latency < measured:
            best = found
    if best.plan.latency is None or budget.latency is None or best.plan.latency <= budget.latency:
        return best
    notes = (*best.plan.notes, f"the measured time is above the budget of {budget.latency:.1%}")
    return replace(best, plan=msgspec.structs.replace(best.plan, notes=notes))


def _within(budget: Budget, resource: str, share: float) -> Budget:
    """The budget with a limit in place of the drop."""
    limits: dict[str, Any] = {"drop": None, "evaluate": None, resource: share}
    return replace(budget, **limits)


def _score(budget: Budget, model: Any) -> float:
    assert budget.evaluate is not None
    try:
        score = float(budget.evaluate(model))
    except Exception as error:  # whatever the caller's function raises
        raise RankfoldError(f"Budget: evaluate fails with {shown(error)}") from error
    if not math.isfinite(score):
        raise RankfoldError(f"Budget: evaluate gave {score}; a finite score is needed")
    return score
