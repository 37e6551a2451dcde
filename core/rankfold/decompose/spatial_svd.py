"""Spatial SVD: a 2-d convolution becomes a vertical one to r channels, then a horizontal one.

The matrix is (out · kw, in · kh) (Jaderberg et al., arXiv 1405.3866). Each stage takes the kernel,
stride, padding and dilation of its own axis; the bias goes to the last. Of all methods this is the
only one that can pay on a depthwise convolution.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rankfold import linalg
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.base import Placement, RankTuple, decompose
from rankfold.decompose.matrix_svd import COUNT, MatrixSVD
from rankfold.decompose.rank_grid import spaced
from rankfold.decompose.reduced_rank_regression import (
    Regression,
    most_explained,
    tries_plain_basis,
)
from rankfold.decompose.spectrum import Side, Spectrum
from rankfold.decompose.stages import along
from rankfold.linalg import Array, along_channels
from rankfold.ops import Chain, Conv, ConvTranspose, Op


@dataclass(frozen=True)
class SpatialSVD(MatrixSVD):
    """Two stages, kh×1 then 1×kw; ranks are (rank,), per group."""

    name: str = "spatial_svd"
    ranks_of_unfoldings: ClassVar[Mapping[str, int]] = {"spatial": 0}
    _limit: ClassVar[str] = "rows (out·kw) or columns (in·kh) of a group"

    def refuse(self, op: Op) -> str | None:
        """Refuse what is not a 2-d convolution."""
        if not isinstance(op, (Conv, ConvTranspose)):
            return f"spatial_svd applies to convolutions, not to {type(op).__name__}; use svd"
        if op.weight.ndim != 4:
            return f"spatial_svd needs a 2-d kernel, not {op.weight.ndim - 2}-d; use tucker2"
        return None

    def _sides(self, op: Op) -> tuple[int, int]:
        out, into, kh, kw = op.weight.shape
        return out // op.groups * kw, into * kh

    def _side(self, op: Op) -> Side:
        rows, columns = self._sides(op)
        return "spatial_rows" if rows <= columns else "spatial_columns"

    def _channels(self, op: Op) -> int:
        channels: int = min(op.weight.shape[0] // op.groups, op.weight.shape[1])
        return channels

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float]]:
        """Return ranks with their squared errors, from eigenvalues or from the regression."""
        metric = spectrum.metric
        if metric is None:
            return super().error_at_ranks(op, spectrum, multiple_of)
        out, into, kh, kw = op.weight.shape
        out //= op.groups
        (most,) = self.max_ranks(op)
        # Above this rank the two stages have more parameters than the layer.
        most = min(most, max(1, out * into * kh * kw // (out * kw + into * kh)))
        stage = self._weighted_vertical(op, spectrum, metric, most)
        # a rank adds one vertical filter, which the horizontal stage sees at kw columns
        regression = Regression.at_positions(metric, spectrum.weighted_moved, stage.mT, kw)
        explained = regression.worth()[kw - 1 :: kw]
        total = spectrum.weight_of_all
        return [
            ((rank,), max(0.0, total - explained[rank - 1]))
            for rank in spaced(most, multiple_of, COUNT)
        ]

    def _regressed(self, op: Op, spectrum: Spectrum, rank: int) -> tuple[Array, Array, float]:
        metric = spectrum.metric
        assert metric is not None
        right, regression = most_explained(
            self._regressions(op, spectrum, rank),
            lambda candidate: float(candidate[1].weighted(metric).worth()[-1]),
        )
        groups, out = spectrum.rows.shape[:2]
        last = regression.solution(rank * op.weight.shape[3])
        left = last.reshape(groups, out, rank, -1).swapaxes(2, 3).reshape(groups, -1, rank)
        dense = (
            linalg.product(left, right).reshape(groups, out, op.weight.shape[3], -1).swapaxes(2, 3)
        )
        return right, left, spectrum.distance(dense.reshape(spectrum.rows.shape))

    def _regressions(
        self, op: Op, spectrum: Spectrum, rank: int
    ) -> Iterator[tuple[Array, Regression]]:
        """Yield candidates for the vertical stage, with the regression of the output on each."""
        metric = spectrum.metric
        assert metric is not None
        columns = spectrum.kernel[1]
        for stage in self._verticals(op, spectrum, rank):
            yield stage, Regression.at_positions(metric, spectrum.moved.rows, stage.mT, columns)

    def _verticals(self, op: Op, spectrum: Spectrum, rank: int) -> Iterator[Array]:
        """Yield nested vertical stages (groups, rank, in · kh): plain if it is cheap, and weighted.

        The best vertical stage under a metric has no closed form: the kw columns of the kernel
        share it, while the inputs that they see differ and are correlated. Two matrices are
        factored in its place. One is W itself. The other takes the columns for independent and
        alike: with C_j the second moment of the input at column j and C̄ = Σ_j C_j / kw, the error
        of G½ W₍out·kw, in·kh₎ under C̄ is the true one but for the terms between two columns. On
        either the horizontal stage is then the exact regression, so that a poor start costs
        little, and the candidate that explains more of the output is taken.
        """
        metric = spectrum.metric
        assert metric is not None
        if tries_plain_basis(spectrum):
            if self._side(op) == "spatial_rows":
                yield spectrum.projected("spatial_rows", rank)[1]
            else:
                yield spectrum.leading("spatial_columns", rank).swapaxes(1, 2)
        yield self._weighted_vertical(op, spectrum, metric, rank)

    def _weighted_vertical(self, op: Op, spectrum: Spectrum, metric: Metric, rank: int) -> Array:
        groups, out, into = spectrum.tensor.shape[:3]
        kh, kw = spectrum.kernel
        weighted = spectrum.weighted_rows.reshape(groups, out, into, kh, kw)
        weighted = linalg.permuted(weighted, (0, 1, 4, 2, 3)).reshape(groups, out * kw, into * kh)
        inputs = metric.inputs
        by_rows = self._side(op) == "spatial_rows"
        if isinstance(inputs, SeparableMoment):
            mean = inputs.of_columns(kw)
            if by_rows:
                basis = linalg.approximate_leading(
                    linalg.product(mean.products(weighted), weighted.mT), rank
                )
            else:
                basis = linalg.left_eigen(mean.root_products(weighted)).leading(rank)
            return linalg.product(basis.mT, weighted)
        column = inputs.reshape(groups, into, kh, kw, into, kh, kw)
        columns = (column[:, :, :, w, :, :, w] for w in range(kw))
        column = functools.reduce(operator.add, columns).reshape(groups, into * kh, -1) / kw
        if by_rows:
            narrow = linalg.cast(weighted, column.dtype)
            gram = along_channels(narrow, column) @ narrow.mT
            basis = linalg.approximate_leading(gram, rank)
        else:
            root = linalg.eigh(column)
            half = along_channels(weighted, linalg.scaled(root.vectors, np.sqrt(root.values), 2))
            basis = linalg.left_eigen(half).leading(rank)
        return linalg.product(basis.mT, weighted)

    def _stages(self, op: Op, right: Array, left: Array) -> Chain:
        assert isinstance(op, (Conv, ConvTranspose))
        groups, rank = right.shape[:2]
        out, into, kh, kw = op.weight.shape
        vertical = right.reshape(groups * rank, into, kh, 1)
        horizontal = left.reshape(groups, out // groups, kw, rank).swapaxes(2, 3)
        horizontal = horizontal.reshape(out, rank, 1, kw)
        return along(op, (0,), vertical, groups), along(op, (1,), horizontal, groups, op.bias)


SPATIAL_SVD = SpatialSVD()


def spatial_svd(op: Op, rank: int, *, placement: Placement = "balanced") -> Chain:
    """Decompose a 2-d `Conv` or `ConvTranspose` by spatial SVD.

    Args:
        op: weight (out, in/groups, kh, kw).
        rank: 1 to min(out/groups · kw, in/groups · kh), per group.
        placement: "balanced" splits the singular values evenly, "classical" puts them into the
            first stage.

    Returns:
        (kh×1 stage, 1×kw stage with the bias), both of the class of `op`.

    Raises:
        RankfoldError: the op does not fit, the rank is out of range, or the weight is empty, all
            zero or not finite.

    Example:
        >>> op = rf.Conv(np.random.default_rng(0).standard_normal((64, 48, 3, 5)))
        >>> [stage.weight.shape for stage in rf.spatial_svd(op, 16)]
        [(16, 48, 3, 1), (64, 16, 1, 5)]
    """
    return decompose(SPATIAL_SVD, op, (rank,), placement)
