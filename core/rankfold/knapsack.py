"""Choosing one item per layer within limits: a multiple-choice knapsack, solved by HiGHS.

The problem is a mixed-integer linear program for `scipy.optimize.milp`, with a proven gap between
what was found and the best there can be.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.ops import Array

GAP = 1e-3
SECONDS = 60.0
_SHRINK = 1e-9
_INFEASIBLE = 2


@dataclass(frozen=True)
class Solution:
    """What was chosen.

    Attributes:
        chosen: the index of the item of each layer.
        gap: how far its value is above the proven lower bound, relative to it.
    """

    chosen: tuple[int, ...]
    gap: float


def cheapest(values: Sequence[Array], costs: Sequence[Array], limits: Array) -> Solution | None:
    """One item per layer with the least summed value such that no summed cost exceeds its limit.

    Args:
        values: of each layer, (items,).
        costs: of each layer, (items, resources), not negative.
        limits: (resources,).

    Returns:
        None where no choice is within the limits.

    Raises:
        RankfoldError: nothing was found in a minute.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(layer) for layer in values]
    ends = np.cumsum([0, *sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    value = np.concatenate([np.asarray(layer, dtype=np.float64) for layer in values])
    cost = np.concatenate([np.asarray(layer, dtype=np.float64) for layer in costs])
    least = np.stack([layer.min(axis=0) for layer in costs]).sum(axis=0)
    if (least > limits).any():
        return None
    largest = float(value.max()) or 1.0
    one_each = csr_array((np.ones(len(value)), (owner, np.arange(len(value)))))
    tightened = 0.0
    for _ in range(6):
        scale = np.maximum(limits, 1e-300)
        constraints = [
            LinearConstraint(one_each, 1.0, 1.0),
            LinearConstraint((cost / scale).T, -np.inf, (limits / scale) * (1.0 - tightened)),
        ]
        found = milp(
            value / largest,
            integrality=np.ones(len(value), dtype=np.int64),
            bounds=Bounds(0.0, 1.0),
            constraints=constraints,
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
        )
        if found.x is None:
            if found.status == _INFEASIBLE and not tightened:
                return None
            if found.status == _INFEASIBLE:
                break
            raise RankfoldError(
                f"the budget was not solved in {SECONDS:.0f} s: {found.message}; use a coarser "
                "multiple_of= or fewer methods="
            )
        chosen = tuple(
            int(np.argmax(found.x[start:end])) for start, end in itertools.pairwise(ends)
        )
        picked = np.array([start + index for start, index in zip(ends, chosen, strict=False)])
        if (cost[picked].sum(axis=0) <= limits).all():
            return Solution(chosen, _gap(found, float(value[picked].sum()) / largest))
        tightened = max(_SHRINK, 10.0 * tightened)
    # the limits are closer to one another than the solver's tolerance: take what costs least
    least = tuple(int(np.argmin((own / scale).max(axis=1))) for own in costs)
    spent = sum(own[index] for own, index in zip(costs, least, strict=True))
    return Solution(least, float("nan")) if bool((spent <= limits).all()) else None


def least_share(costs: Sequence[Array], limits: Array) -> float:
    """The least factor on the limits that makes them feasible."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(layer) for layer in costs]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    cost = np.concatenate([np.asarray(layer, dtype=np.float64) for layer in costs])
    count = len(cost)
    scale = np.maximum(limits, 1e-300)
    if len(limits) == 1:
        return float(sum(layer[:, 0].min() for layer in costs) / scale[0])
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), shape=(len(sizes), count + 1))
    within = np.hstack([(cost / scale).T, -np.ones((len(limits), 1))])
    found = milp(
        np.append(np.zeros(count), 1.0),
        integrality=np.append(np.ones(count, dtype=np.int64), 0),
        bounds=Bounds(0.0, np.append(np.ones(count), np.inf)),
        constraints=[LinearConstraint(one_each, 1.0, 1.0), LinearConstraint(within, -np.inf, 0.0)],
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    return float("nan") if found.x is None else float(found.x[-1])


def _gap(found: object, value: float) -> float:
    bound = getattr(found, "mip_dual_bound", None)
    if bound is None or not np.isfinite(bound):
        return float("nan")
    return max(0.0, value - float(bound)) / max(abs(float(bound)), 1e-12)
