"""Search for a model that is good enough: a drop of a score, and a measured time.

A score is not monotone in the budget, but nearly: the share of the cost is bisected on a
logarithmic scale between the smallest that is feasible and the whole model. A limit on the time is
tightened by as much as the model that was planned within it measures above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from rankfold.errors import Infeasible, RankfoldError
from rankfold.faults import let_through, shown
from rankfold.plan.plan import Trial
from rankfold.policies.base import Outcome
from rankfold.progress import progress

TRIALS = 8
"""Halvings of log(1 / 0.01): the share is then known to 2 %, which is _CLOSE."""
_LEAST = 0.01
"""The smallest share that is tried, of the largest one."""
_CLOSE = 1.02
"""Ratio of the bounds of the share at which the search ends."""
_TIGHTENED = 3
"""Times are noisy: what three corrections do not reach, a fourth reaches by luck."""
_MARGIN = 0.97
"""The next limit lies this much below what the measurement asks for, or it would be met half of
the time only."""


def cheapest_good_enough(
    model: Any,
    attempt: Callable[[float], Outcome],
    evaluate: Callable[[Any], float],
    drop: float,
    most: float,
    resource: str,
) -> Outcome:
    """The cheapest model found whose score is good enough; its plan has every trial.

    Args:
        model: the original.
        attempt: compresses the original to a share of its cost.
        evaluate: gives the score of a model, higher for better ones.
        drop: by how much the score may be below that of the original.
        most: the largest share to try.
        resource: what the share is of, for the progress bar.

    Raises:
        RankfoldError: `evaluate` fails or gives no finite number, or no trial is good enough.
    """
    first = score_of(evaluate, model)
    trials = [Trial(share=1.0, score=first, kept=True)]

    def good_at(share: float) -> Outcome | None:
        outcome = attempt(share)
        score = score_of(evaluate, outcome.model)
        is_good = score >= first - drop
        trials.append(Trial(share=share, score=score, kept=is_good))
        return outcome if is_good else None

    best: Outcome | None = None
    low, high = _LEAST * most, most
    with progress("trying", TRIALS) as advance:
        for _ in range(TRIALS):
            share = math.sqrt(low * high)
            advance(f"{resource} {share:.3g}")
            try:
                good = good_at(share)
            except Infeasible as error:
                low = min(share * error.factor, high)
                continue
            if good is None:
                low = share
            else:
                best, high = good, share
            if high / low < _CLOSE:
                break
    best = best or good_at(most)
    if best is None:
        highest = max(trial.score for trial in trials[1:])
        raise RankfoldError(
            f"Budget(drop={drop}): the best of {len(trials) - 1} smaller models scores "
            f"{highest:.4g}, the original {first:.4g}; allow a larger drop"
        )
    return replace(best, plan=msgspec.structs.replace(best.plan, trials=tuple(trials)))


def fast_enough(attempt: Callable[[float], Outcome], latency: float) -> Outcome:
    """The first model that measures within a limit on the time, or the fastest of a few.

    Args:
        attempt: compresses the original to a predicted share of its time.
        latency: the limit, as a share.
    """
    best = attempt(latency)
    limit = latency
    for _ in range(_TIGHTENED):
        measured = best.plan.latency
        if measured is None or measured <= latency:
            return best
        limit *= _MARGIN * latency / measured
        try:
            outcome = attempt(limit)
        except Infeasible:
            break
        if outcome.plan.latency is not None and outcome.plan.latency < measured:
            best = outcome
    if best.plan.latency is None or best.plan.latency <= latency:
        return best
    notes = (*best.plan.notes, f"the measured time is above the budget of {latency:.1%}")
    return replace(best, plan=msgspec.structs.replace(best.plan, notes=notes))


def score_of(evaluate: Callable[[Any], float], model: Any, who: str = "Budget") -> float:
    """Return the score of a model.

    Args:
        evaluate: the caller's function.
        model: to score.
        who: asks, for messages.

    Raises:
        RankfoldError: `evaluate` fails or gives no finite number.
    """
    try:
        score = float(evaluate(model))
    except Exception as error:  # whatever the caller's function raises
        let_through(error)
        raise RankfoldError(f"{who}: evaluate fails with {shown(error)}") from error
    if not math.isfinite(score):
        raise RankfoldError(f"{who}: evaluate gave {score}; a finite score is needed")
    return score
