"""Base of the methods that factor a single matrix: svd, channel_svd and spatial_svd.

Each unfolds the weight W of a layer into a matrix in its own way and writes the factors of rank r,
W ≈ left · right, as two layers. The truncated singular value decomposition is the best
approximation of that rank (Eckart and Young, Psychometrika 1, 1936).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rankfold import linalg
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.base import Factorization, Placement, RankTuple, Unfolding
from rankfold.decompose.rank_grid import spaced
from rankfold.decompose.reduced_rank_regression import Regression, projection
from rankfold.decompose.spectrum import Side, Spectrum
from rankfold.decompose.stages import cast, check_ranks, place_scale, refilled
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Embedding, Op, blank

COUNT = 40
"""Ranks of a single matrix, about, that a budget chooses from; each costs only a cumulative sum."""


@dataclass(frozen=True)
class MatrixSVD(ABC):
    """Two layers from one matricisation of a weight; ranks are (rank,), per group.

    Attributes:
        name: the word used in `methods=` and in plans.
    """

    name: str
    multilinear_costs: ClassVar[bool] = True
    ranks_of_unfoldings: ClassVar[Mapping[str, int]]
    _limit: ClassVar[str]
    """Name of what limits the rank, for error texts."""

    @abstractmethod
    def refuse(self, op: Op) -> str | None:
        """Return why the method does not apply to the op; None where it does."""

    @abstractmethod
    def _side(self, op: Op) -> Side:
        """Return the side of the matrix whose Gram matrix gives the singular vectors."""

    @abstractmethod
    def _stages(self, op: Op, right: Array, left: Array) -> Chain:
        """Build the two layers.

        Args:
            op: the layer that is decomposed.
            right: (groups, rank, n), the factor that meets the input.
            left: (groups, m, rank), the factor that gives the output.
        """

    def _sides(self, op: Op) -> tuple[int, int]:
        """Return the (rows, columns) of the matrix of one group."""
        return op.weight.shape[0] // op.groups, math.prod(op.weight.shape[1:])

    def _channels(self, op: Op) -> int:
        """Return the channel count that a rank given as a share refers to."""
        return min(self._sides(op))

    def surpassed(self, op: Op) -> str | None:
        """Return "svd" for kernels of one position, where the stages are those of that method."""
        return "svd" if isinstance(op, Conv) and math.prod(op.weight.shape[2:]) == 1 else None

    def max_ranks(self, op: Op) -> RankTuple:
        """Return the smaller side of the matrix of one group."""
        return (min(self._sides(op)),)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """Return the matrix, the only one whose rank a policy chooses."""
        sides, side = self._sides(op), self._side(op)

        def values() -> Array:
            return spectrum.values(side)[:, : min(sides)]

        name = spectrum.name_of(side)
        return (Unfolding(values, sides, self._channels(op), spectrum.scale, name),)

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """Return the rank of the matrix."""
        return unfolding_ranks

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Return the two layers without values."""
        (rank,) = check_ranks(self.name, op, ranks, self.max_ranks(op), (self._limit,))
        rows, columns = self._sides(op)
        if isinstance(op, Embedding):
            rows, columns = columns, rows
        return self._stages(op, blank(op.groups, rank, columns), blank(op.groups, rows, rank))

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float]]:
        """Return ranks with their exact squared errors: the sums of the eigenvalues left out."""
        values = (
            self.modes(op, spectrum)[0].values
            if spectrum.metric is None
            else spectrum.weighted_values
        )
        return _offered(values, spectrum.weight_of_all, self.max_ranks(op)[0], multiple_of)

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Project the matrix on leading singular vectors, or regress it under a metric."""
        (rank,) = ranks
        remark = ""
        if spectrum.metric is None:
            left, right, kept, remark = self._truncated(op, spectrum, rank, rng)
            error = spectrum.relative_error(kept)
            if isinstance(op, Embedding):  # the rows of a table are its inputs
                left, right = right.mT, left.mT
        else:
            right, left, error = self._regressed(op, spectrum, rank)
        right, left = place_scale(right, left, spectrum.scale, placement)
        return Factorization(cast(self._stages(op, right, left), op), error, remark)

    def with_later_stages(
        self, op: Op, chain: Chain, regression: Regression, metric: Metric
    ) -> Chain:
        """Return a chain with its first layer and the regression on it as the second."""
        first, last = chain
        solution = regression.solution(regression.explained.shape[1])
        return first, refilled(last, solution)

    def _truncated(
        self, op: Op, spectrum: Spectrum, rank: int, rng: np.random.Generator
    ) -> tuple[Array, Array, float, str]:
        """Return left and right factor, the energy that they keep, and a remark."""
        return *spectrum.projected(self._side(op), rank), ""

    def _regressed(self, op: Op, spectrum: Spectrum, rank: int) -> tuple[Array, Array, float]:
        """Return the right and the left factor under the metric, and the plain relative error."""
        right, left = projection(spectrum, rank)
        return right, left, spectrum.distance(linalg.product(left, right))


def _offered(
    values: Array, total: float, most: int, multiple_of: int
) -> list[tuple[RankTuple, float]]:
    """Return ranks of a single matrix with the squared error of each, from its eigenvalues.

    Args:
        values: (groups, k), descending: the squared error of dropping each direction.
        total: the squared error of dropping the matrix.
        most: the largest rank.
        multiple_of: the ranks are multiples of it, where there are such.
    """
    kept = np.cumsum(values.sum(axis=0))
    last = len(kept) - 1
    return [
        ((rank,), max(0.0, total - float(kept[min(rank - 1, last)])) if rank < most else 0.0)
        for rank in spaced(most, multiple_of, COUNT)
    ]
