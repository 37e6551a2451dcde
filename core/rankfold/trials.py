"""The cheapest model whose score falls by no more than a given amount, found by bisection.

A score is not monotone in the budget, but nearly: the share of the cost is bisected on a
logarithmic scale between the smallest that is feasible and the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rankfold.errors import Infeasible, RankfoldError
from rankfold.plan import Plan, Trial
from rankfold.policies.budget import Budget
from rankfold.progress import progress

TRIALS = 8
_LEAST = 0.01
_CLOSE = 1.02


def search(
    budget: Budget,
    model: Any,
    attempt: Callable[[Budget], tuple[Any, Plan]],
    resource: str,
) -> tuple[Any, Plan, tuple[Trial, ...]]:
    """The best model found, its plan, and every trial.

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
    best: tuple[Any, Plan] | None = None
    most = getattr(budget, resource) or 1.0
    low, high = _LEAST * most, most
    share = math.sqrt(low * high)
    with progress("trying", TRIALS) as advance:
        for _ in range(TRIALS):
            advance(f"{resource} {share:.3g}")
            try:
                small, plan = attempt(within(budget, resource, share))
            except Infeasible as error:
                low = min(share * error.factor, high)
                share = math.sqrt(low * high)
                continue
            score = _score(budget, small)
            good = score >= first - budget.drop
            trials.append(Trial(share=share, score=score, kept=good))
            if good:
                best, high = (small, plan), share
            else:
                low = share
            share = math.sqrt(low * high)
            if high / low < _CLOSE:
                break
    if best is None:
        small, plan = attempt(within(budget, resource, most))
        score = _score(budget, small)
        trials.append(Trial(share=most, score=score, kept=score >= first - budget.drop))
        if not trials[-1].kept:
            found = max(trial.score for trial in trials[1:])
            raise RankfoldError(
                f"Budget(drop={budget.drop}): the best of {len(trials) - 1} smaller models scores "
                f"{found:.4g}, the original {first:.4g}; allow a larger drop"
            )
        best = small, plan
    return *best, tuple(trials)


def within(budget: Budget, resource: str, share: float) -> Budget:
    """The budget with a limit in place of the drop."""
    limits: dict[str, Any] = {"drop": None, "evaluate": None, resource: share}
    return replace(budget, **limits)


def _score(budget: Budget, model: Any) -> float:
    assert budget.evaluate is not None
    try:
        score = float(budget.evaluate(model))
    except Exception as error:  # whatever the caller's function raises
        raise RankfoldError(f"Budget: evaluate fails with {error!r}") from error
    if not math.isfinite(score):
        raise RankfoldError(f"Budget: evaluate gave {score}; a finite score is needed")
    return score
