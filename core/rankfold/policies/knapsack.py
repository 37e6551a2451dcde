"""Choosing one item per layer within limits: a multiple-choice knapsack, solved by HiGHS.

The problem is a mixed-integer linear program for `scipy.optimize.milp`, with a proven gap between
what was found and the best there can be. Layers with the same items are one class of which the
program counts how many take each item: told apart, they could be exchanged in every solution, and
the solver would look at all of those. The search ends after a number of nodes, never after a time,
so that the same call gives the same choice on a busy machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankfold.linalg import Array

GAP = 1e-3
"""Relative gap at which the search ends: losses of offers are estimates that are less certain."""
NODES = 1000
"""Of the search: under four seconds for a dozen layers that hardly differ, where the bound closes
slowest; thousands of layers end at the first node, since rounding costs them next to nothing."""
_SHRINK = 1e-9
"""Relative tightening of the first round: above the rounding of float64 sums, below one item."""
_INFEASIBLE = 2
"""The status of `scipy.optimize.milp` where no choice keeps all limits."""


@dataclass(frozen=True)
class Solution:
    """Choice of one item per layer.

    Attributes:
        chosen: the index of the item of each layer.
        gap: how far its value is above the proven lower bound, relative to it.
    """

    chosen: tuple[int, ...]
    gap: float


def cheapest(values: Sequence[Array], costs: Sequence[Array], limits: Array) -> Solution | None:
    """Return one item per layer with the least summed value and every cost within its limit.

    Args:
        values: of each layer, (items,).
        costs: of each layer, (items, resources), not negative.
        limits: (resources,).

    Returns:
        None where no choice is within the limits.
    """
    # HiGHS takes a constraint as kept when it is exceeded by no more than its feasibility
    # tolerance (1e-6, with every limit scaled to 1), and a budget must not be exceeded at all. So
    # the choice is costed again, and where it is above a limit, all limits are tightened by a
    # relative 1e-9, 1e-8, ..., 1e-5: the last of the six rounds is beyond the tolerance, and the
    # first ones give away no item that fits exactly.
    problem = _Problem(values, costs)
    if (problem.least > limits).any():
        return None
    scale = np.maximum(limits, 1e-300)
    tightened = 0.0
    for _ in range(6):
        result = problem.solved(scale, (limits / scale) * (1.0 - tightened), integral=True)
        if result.status == _INFEASIBLE and not tightened:
            return None
        if result.x is None:
            break
        chosen = problem.layers(np.rint(result.x))
        if (problem.spent(chosen) <= limits).all():
            return Solution(chosen, problem.gap(chosen, result.mip_dual_bound))
        tightened = max(_SHRINK, 10.0 * tightened)
    # No choice within so many nodes, or limits closer to one another than the tolerance. A vertex
    # of the linear relaxation takes parts of items in few classes only; each layer left open there
    # gets the cheapest item of its mixture. With one resource that costs no more than the mixture;
    # with several it may, then the cheapest item of every layer is the last resort. The optimum of
    # the relaxation bounds the best choice from below, so the gap stays proven.
    relaxed = problem.solved(scale, limits / scale, integral=False)
    rounded = problem.layers(np.zeros(len(problem.value)), relaxed.x, scale)
    frugal = problem.layers(np.zeros(len(problem.value)), None, scale)
    for chosen in (rounded, frugal):
        if (problem.spent(chosen) <= limits).all():
            return Solution(chosen, problem.gap(chosen, relaxed.fun))
    return None


class _Problem:
    """The layers by classes of equal ones.

    Attributes:
        value: of the items of all classes, (items,).
        least: a lower bound of what is spent, (resources,).
    """

    def __init__(self, values: Sequence[Array], costs: Sequence[Array]) -> None:
        self._costs = [np.asarray(cost, dtype=np.float64) for cost in costs]
        self._values = [np.asarray(value, dtype=np.float64) for value in values]
        members: dict[tuple[bytes, bytes], list[int]] = {}
        for layer, (value, cost) in enumerate(zip(self._values, self._costs, strict=True)):
            members.setdefault((value.tobytes(), cost.tobytes()), []).append(layer)
        self._members = list(members.values())
        first = [layers[0] for layers in self._members]
        self.value = np.concatenate([self._values[layer] for layer in first])
        self.cost = np.concatenate([self._costs[layer] for layer in first])
        self.least = np.stack([cost.min(axis=0) for cost in self._costs]).sum(axis=0)
        self._ends = np.cumsum([0, *(len(self._values[layer]) for layer in first)])
        self._largest = float(self.value.max()) or 1.0

    def solved(self, scale: Array, limits: Array, *, integral: bool) -> Any:
        """Return HiGHS's result: how often each item is taken; in parts unless `integral`."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        sizes = np.array([len(layers) for layers in self._members], dtype=np.float64)
        items = np.arange(len(self.value))
        owner = np.repeat(np.arange(len(sizes)), np.diff(self._ends))
        one_each = csr_array((np.ones(len(items)), (owner, items)))
        return milp(
            self.value / self._largest,
            integrality=np.full(len(items), int(integral)),
            bounds=Bounds(0.0, sizes[owner]),
            constraints=[
                LinearConstraint(one_each, sizes, sizes),
                LinearConstraint((self.cost / scale).T, -np.inf, limits),
            ],
            options={"mip_rel_gap": GAP, "node_limit": NODES},
        )

    def layers(
        self, counts: Array, parts: Array | None = None, scale: Array | float = 1.0
    ) -> tuple[int, ...]:
        """Return the item of each layer.

        Args:
            counts: how often each item is taken, whole numbers.
            parts: how often with parts of items: what whole numbers of them leave open goes to
                the least costly item that is taken in part; to the least costly of all without.
            scale: of the costs.
        """
        chosen = [0] * len(self._values)
        price = (self.cost / scale).max(axis=1)
        for index, layers in enumerate(self._members):
            items = slice(self._ends[index], self._ends[index + 1])
            often = counts[items] if parts is None else np.floor(parts[items] + 1e-6)
            used = np.ones(len(price[items]), dtype=bool) if parts is None else parts[items] > 1e-6
            rest = int(np.argmin(np.where(used, price[items], np.inf)))
            picked = np.repeat(np.arange(len(often)), often.astype(int))[: len(layers)].tolist()
            picked += [rest] * (len(layers) - len(picked))
            for layer, item in zip(layers, picked, strict=True):
                chosen[layer] = item
        return tuple(chosen)

    def spent(self, chosen: Sequence[int]) -> Array:
        """Summed cost of a choice, (resources,)."""
        spent: Array = np.sum(
            [cost[item] for cost, item in zip(self._costs, chosen, strict=True)], axis=0
        )
        return spent

    def gap(self, chosen: Sequence[int], bound: float | None) -> float:
        """Relative gap between the value of a choice and a lower bound of HiGHS's; NaN without."""
        if bound is None or not np.isfinite(bound):
            return float("nan")
        value = sum(float(values[item]) for values, item in zip(self._values, chosen, strict=True))
        value /= self._largest
        return max(0.0, value - float(bound)) / max(abs(float(bound)), 1e-12)


def least_share(costs: Sequence[Array], limits: Array) -> float:
    """Return the least factor on the limits that makes them feasible; NaN where none is result."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    # One more variable t beside the items: minimise t such that Σ cost ≤ t·limit for each
    # resource. With a single resource the cheapest item of every layer solves it.
    sizes = [len(layer) for layer in costs]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    cost = np.concatenate([np.asarray(layer, dtype=np.float64) for layer in costs])
    count = len(cost)
    scale = np.maximum(limits, 1e-300)
    if len(limits) == 1:
        return float(sum(layer[:, 0].min() for layer in costs) / scale[0])
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), shape=(len(sizes), count + 1))
    within = np.hstack([(cost / scale).T, -np.ones((len(limits), 1))])
    for integral in (1, 0):  # parts of items where no solution is met within so many nodes
        result = milp(
            np.append(np.zeros(count), 1.0),
            integrality=np.append(np.full(count, integral), 0),
            bounds=Bounds(0.0, np.append(np.ones(count), np.inf)),
            constraints=[
                LinearConstraint(one_each, 1.0, 1.0),
                LinearConstraint(within, -np.inf, 0.0),
            ],
            options={"mip_rel_gap": GAP, "node_limit": NODES},
        )
        if result.x is not None:
            return float(result.x[-1])
    return float("nan")
