"""The trade-off curve of a budget: the least predicted loss at each share of the cost.

The offers of a layer that a mixture of two others does not beat are those on the lower convex hull
of (cost, loss). Going down all hulls at once, the step of least loss per cost first, gives optima
of the knapsack at as many costs as there are steps (Lagrangian relaxation; Everett, Operations
Research 11, 1963). It takes a sort, and no programme is solved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

from rankfold.layers.candidates import Offer
from rankfold.layers.group import LayerGroup
from rankfold.ops import Cost
from rankfold.plan.tradeoff import Tradeoff

_POINTS = 48
"""Points of a curve, about: a plan keeps no more of them."""
Resource: TypeAlias = Literal["params", "macs"]
Point: TypeAlias = tuple[float, float]


def tradeoff(
    group: LayerGroup, offers: Sequence[Sequence[Offer | None]], chosen: Sequence[int]
) -> Tradeoff | None:
    """Return the curve of a whole model, and where a choice lies.

    Args:
        group: the layers, and what surrounds them.
        offers: of each layer; the first is the layer as it is.
        chosen: the offer of each layer.

    Returns:
        None where there is nothing to choose.
    """
    resource: Resource = (
        "macs" if group.original_cost.macs and all(layer.traced for layer in group) else "params"
    )
    total = _count(group.original_cost, resource)
    if not total or not any(len(items) > 1 for items in offers):
        return None
    before = [_count(layer.costs.before, resource) for layer in group]
    lower = [_hull(items, first, resource) for items, first in zip(offers, before, strict=True)]
    steps = sorted((step for hull in lower for step in hull), key=lambda step: step[1] / -step[0])
    cost = _count(group.cost_elsewhere, resource) + sum(before)
    points = [(cost, 0.0)]
    for saved, lost in steps:
        points.append((points[-1][0] + saved, points[-1][1] + lost))
    informed = any(layer.has_moments for layer in group)

    def scaled(point: Point) -> Point:
        spent, loss = point[0] / total, max(0.0, point[1])
        value = loss if informed else math.sqrt(loss / len(offers))
        return float(f"{spent:.5g}"), float(f"{value:.4g}")

    picked = [items[index] for items, index in zip(offers, chosen, strict=True)]
    spent = sum(
        _count(offer.cost, resource) - first
        for offer, first in zip(picked, before, strict=True)
        if offer is not None
    )
    return Tradeoff(
        resource=resource,
        measure="loss" if informed else "error",
        points=tuple(scaled(point) for point in _thinned(points)),
        plan=scaled((cost + spent, sum(offer.loss for offer in picked if offer is not None))),
    )


def _count(cost: Cost, resource: Resource) -> float:
    return float(cost.params if resource == "params" else cost.macs)


def _hull(items: Sequence[Offer | None], first: float, resource: Resource) -> list[Point]:
    """Return the steps down the lower convex hull of a layer: (cost, loss), the cost negative."""
    offered = {(_count(o.cost, resource), o.loss) for o in items if o is not None}
    hull: list[Point] = [(first, 0.0)]
    for cost, loss in sorted(offered, key=lambda point: (-point[0], point[1])):
        # A factored table saves parameters and costs multiply-accumulates.
        if cost >= first or cost == hull[-1][0]:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], (cost, loss)):
            hull.pop()
        hull.append((cost, loss))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(hull)]


def _is_above(left: Point, middle: Point, right: Point) -> bool:
    """Return whether a point lies above the line between its neighbours, costs descending."""
    return (middle[1] - left[1]) * (left[0] - right[0]) >= (right[1] - left[1]) * (
        left[0] - middle[0]
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return points at about even distances of cost, both ends among them."""
    width = (points[0][0] - points[-1][0]) / _POINTS
    kept = [points[0]]
    for point in points[1:-1]:
        if kept[-1][0] - point[0] >= width:
            kept.append(point)
    return [*kept, points[-1]]
