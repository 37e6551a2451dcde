"""Remainder of a budget: ranks are raised between those on offer while every limit has room.

Offers are well spaced, so that one more step of a layer may exceed a limit where a few more ranks
would not; with few layers that is several per cent of the budget. Steps of one rank are taken, the
greatest loss per cost first. The loss between ranks on offer is interpolated linearly: as it falls
ever more slowly with the rank, that is no less than it will be.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankfold.decompose.base import RankTuple
from rankfold.linalg import Array


@dataclass(frozen=True, eq=False)
class Rungs:
    """The ranks of one layer that can be raised.

    Attributes:
        ranks: as chosen.
        most: to which they can be raised.
        multiple_of: of the ranks, but for the largest.
        losses: at the ranks that were looked at.
        cost: of ranks, (resources,); None where the layer would grow.
    """

    ranks: RankTuple
    most: RankTuple
    multiple_of: int
    losses: Mapping[RankTuple, float]
    cost: Callable[[RankTuple], Array | None]

    @cached_property
    def _together(self) -> bool:
        """Whether only equal ranks are on offer, which are raised together."""
        return all(len(set(ranks)) == 1 for ranks in self.losses)

    @cached_property
    def _grid(self) -> list[list[int]]:
        """The ranks that were looked at, by axis."""
        return [
            sorted({looked_at[axis] for looked_at in self.losses})
            for axis in range(len(self.ranks))
        ]

    def steps(self, ranks: RankTuple) -> Iterator[RankTuple]:
        """Yield the ranks raised by the least that is allowed, one axis at a time."""
        following = tuple(
            min((rank // self.multiple_of + 1) * self.multiple_of, most)
            for rank, most in zip(ranks, self.most, strict=True)
        )
        if self._together:
            yield (min(following),) * len(ranks)
            return
        for axis, rank in enumerate(following):
            yield (*ranks[:axis], rank, *ranks[axis + 1 :])

    def loss(self, ranks: RankTuple) -> float | None:
        """Loss at ranks, multilinear between those looked at; None where these are no full grid."""
        if self._together:
            points = sorted((equal[0], loss) for equal, loss in self.losses.items())
            looked_at, losses = [rank for rank, _ in points], [loss for _, loss in points]
            if not looked_at[0] <= ranks[0] <= looked_at[-1]:
                return None
            return float(np.interp(ranks[0], looked_at, losses))
        # Multilinear interpolation in the cell of the grid that holds the ranks: the weight of a
        # corner is the product over the axes of its share (1−t at the lower end, t at the upper).
        around = []
        for rank, grid in zip(ranks, self._grid, strict=True):
            above = int(np.searchsorted(grid, rank))
            if above == len(grid) or (above == 0 and grid[0] != rank):
                return None
            low, high = grid[max(0, above - 1)], grid[above]
            share = 1.0 if high == low else (rank - low) / (high - low)
            around.append(((low, 1.0 - share), (high, share)))
        total = 0.0
        for corner in itertools.product(*around):
            weight = float(np.prod([share for _, share in corner]))
            if weight > 0.0:
                loss = self.losses.get(tuple(rank for rank, _ in corner))
                if loss is None:
                    return None
                total += weight * loss
        return total


def raised(layers: Sequence[Rungs], room: Array, scale: Array) -> list[RankTuple]:
    """Raise the ranks of layers as far as the limits have room, and return them.

    Args:
        layers: with their ranks.
        room: what is left of each limit, (resources,).
        scale: of the resources.
    """
    # Greedy: the heap has, for every layer, its next steps by Δloss / Σ_r Δcost_r/scale_r, the most
    # negative first. A step that fits is taken and the layer's next steps are offered; one that
    # does not is dropped for good, since the room only shrinks. With one resource and losses that
    # fall ever more slowly that is the greedy of the relaxed knapsack; in general it is a heuristic
    # that never exceeds a limit.
    current = [layer.ranks for layer in layers]
    waiting: list[tuple[float, int, RankTuple, RankTuple]] = []

    def spent(index: int) -> Array:
        cost = layers[index].cost(current[index])
        assert cost is not None
        return cost

    costs = [spent(index) for index in range(len(layers))]

    def offer_steps(index: int) -> None:
        layer, ranks = layers[index], current[index]
        loss = layer.loss(ranks)
        if loss is None:
            return
        for step in layer.steps(ranks):
            cost, lower = layer.cost(step), layer.loss(step)
            if cost is None or lower is None or not lower < loss:
                continue
            price = max(float(((cost - costs[index]) / scale).sum()), 1e-300)
            heapq.heappush(waiting, ((lower - loss) / price, index, ranks, step))

    for index in range(len(layers)):
        offer_steps(index)
    while waiting:
        _, index, before, step = heapq.heappop(waiting)
        if before != current[index]:
            continue  # another of its ranks has been raised since
        cost = layers[index].cost(step)
        assert cost is not None
        added = cost - costs[index]
        if (added <= room).all():  # room only shrinks: what does not fit now never will
            room = room - added
            current[index], costs[index] = step, cost
            offer_steps(index)
    return current
