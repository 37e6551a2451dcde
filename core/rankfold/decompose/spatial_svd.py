"""Spatial SVD: a 2-d convolution becomes a vertical one to r channels, then a horizontal one.

The matrix is (out · kw, in · kh) (Jaderberg et al., arXiv 1405.3866). Each stage takes the kernel,
stride, padding and dilation of its own axis; the bias goes to the last. Of all methods this is the
only one that can pay on a depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rankfold import linalg
from rankfold.decompose.base import Factorization, Placement, RankTuple, Unfolding, decompose
from rankfold.decompose.rank_grid import spaced
from rankfold.decompose.reduced_rank_regression import COUNT, Regression, offered
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.stages import along, cast, check_ranks, place_scale
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Convolution, ConvTranspose, Op, blank


class SpatialSVD:
    """Two stages, kh×1 then 1×kw; ranks are (rank,), per group."""

    name = "spatial_svd"

    def refuse(self, op: Op) -> str | None:
        """Refuses what is not a 2-d convolution."""
        if not isinstance(op, (Conv, ConvTranspose)):
            return f"spatial_svd applies to convolutions, not to {type(op).__name__}; use svd"
        if op.weight.ndim != 4:
            return f"spatial_svd needs a 2-d kernel, not {op.weight.ndim - 2}-d; use tucker2"
        return None

    def max_ranks(self, op: Op) -> RankTuple:
        """The smaller side of the matrix of one group."""
        return (min(self._sides(op)),)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """The matrix (out · kw, in · kh)."""
        rows, columns = self._sides(op)
        channels = min(op.weight.shape[0] // op.groups, op.weight.shape[1])

        def values() -> Array:
            return (spectrum.spatial_rows if rows <= columns else spectrum.spatial_columns).values

        return (Unfolding(values, (rows, columns), channels, spectrum.scale),)

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """The rank of the matrix."""
        return unfolding_ranks

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Shapes of (vertical, horizontal)."""
        assert isinstance(op, (Conv, ConvTranspose))
        limit = "rows (out·kw) or columns (in·kh) of a group"
        (rank,) = check_ranks(self.name, op, ranks, self.max_ranks(op), (limit,))
        rows, columns = self._sides(op)
        return self._chain(op, blank(op.groups, rank, columns), blank(op.groups, rows, rank))

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float]]:
        """Errors from the eigenvalues, or from the regression of the last stage."""
        most = self.max_ranks(op)[0]
        if spectrum.metric is None:
            values = self.modes(op, spectrum)[0].values
            return offered(values, spectrum.weight_of_all, most, multiple_of)
        kw = op.weight.shape[3]
        worth = np.zeros(most)
        for stage in self._verticals(op, spectrum, most):
            regression = Regression.of(spectrum.metric, spectrum.rows, self._spread(op, stage))
            worth = np.maximum(worth, regression.worth(spectrum.metric)[kw - 1 :: kw])
        total = spectrum.weight_of_all
        return [((r,), max(0.0, total - worth[r - 1])) for r in spaced(most, multiple_of, COUNT)]

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Projects the matrix on the leading singular vectors of its smaller side.

        Under a metric the vertical stage is that of the matrix, plain or with the inputs of a
        column and the outputs weighted, whichever serves better, and the horizontal one the
        regression on it.
        """
        assert isinstance(op, (Conv, ConvTranspose))
        if spectrum.metric is not None:
            return self._regressed(op, ranks[0], spectrum, placement)
        matrix = spectrum.spatial_unfolding
        rows, columns = self._sides(op)
        if rows <= columns:
            left = spectrum.leading("spatial_rows", ranks[0])
            right = left.mT @ matrix
            kept = linalg.inner(right, right)
        else:
            vectors = spectrum.leading("spatial_columns", ranks[0])
            left = matrix @ vectors
            right = vectors.mT
            kept = linalg.inner(left, left)
        right, left = place_scale(right, left, spectrum.scale, placement)
        return Factorization(cast(self._chain(op, right, left), op), spectrum.relative_error(kept))

    def _regressed(
        self, op: Convolution, rank: int, spectrum: Spectrum, placement: Placement
    ) -> Factorization:
        metric = spectrum.metric
        assert metric is not None
        best: tuple[float, Array, Regression] | None = None
        for stage in self._verticals(op, spectrum, rank):
            regression = Regression.of(metric, spectrum.rows, self._spread(op, stage))
            worth = float(regression.worth(metric)[-1])
            if best is None or worth > best[0] * (1.0 + 1e-9):
                best = worth, stage, regression
        assert best is not None
        _, right, regression = best
        groups, out = spectrum.rows.shape[:2]
        last = regression.solution(rank * op.weight.shape[3])
        error = spectrum.distance(np.matmul(last, self._spread(op, right)))
        left = last.reshape(groups, out, rank, -1).swapaxes(2, 3).reshape(groups, -1, rank)
        right, left = place_scale(right, left, spectrum.scale, placement)
        return Factorization(cast(self._chain(op, right, left), op), error)

    def _verticals(self, op: Op, spectrum: Spectrum, rank: int) -> Iterator[Array]:
        """Nested vertical stages (groups, rank, in · kh): plain, then weighted."""
        metric = spectrum.metric
        assert metric is not None
        matrix = spectrum.spatial_unfolding
        rows, columns = self._sides(op)
        if rows <= columns:
            plain = spectrum.leading("spatial_rows", rank)
            yield np.matmul(plain.swapaxes(1, 2), matrix)
        else:
            yield spectrum.leading("spatial_columns", rank).swapaxes(1, 2)
        groups, out, into = spectrum.tensor.shape[:3]
        kh, kw = spectrum.kernel
        weighted = metric.weight_outputs(spectrum.rows).reshape(groups, out, into, kh, kw)
        weighted = weighted.transpose(0, 1, 4, 2, 3).reshape(groups, out * kw, into * kh)
        column = metric.full_inputs.reshape(groups, into, kh, kw, into, kh, kw)
        column = np.einsum("gihwjkw->gihjk", column).reshape(groups, into * kh, into * kh) / kw
        if rows <= columns:
            gram = np.matmul(np.matmul(weighted, column), weighted.swapaxes(1, 2))
            basis = linalg.eigh(gram).leading(rank)
        else:
            root = linalg.eigh(column)
            half = np.matmul(weighted, root.vectors * np.sqrt(root.values)[:, None, :])
            basis = linalg.left_eigen(half).leading(rank)
        yield np.matmul(basis.swapaxes(1, 2), weighted)

    @staticmethod
    def _spread(op: Op, stage: Array) -> Array:
        """Z (groups, rank · kw, d): the vertical stage at every column of the kernel."""
        groups, rank = stage.shape[:2]
        into, kh, kw = op.weight.shape[1:]
        wide = np.zeros((groups, rank, kw, into, kh, kw))
        for column in range(kw):
            wide[:, :, column, :, :, column] = stage.reshape(groups, rank, into, kh)
        return wide.reshape(groups, rank * kw, into * kh * kw)

    @staticmethod
    def _sides(op: Op) -> tuple[int, int]:
        out, into, kh, kw = op.weight.shape
        return out // op.groups * kw, into * kh

    @staticmethod
    def _chain(op: Convolution, right: Array, left: Array) -> Chain:
        groups, rank = right.shape[:2]
        out, into, kh, kw = op.weight.shape
        vertical = right.reshape(groups * rank, into, kh, 1)
        horizontal = left.reshape(groups, out // groups, kw, rank).swapaxes(2, 3)
        horizontal = horizontal.reshape(out, rank, 1, kw)
        return along(op, (0,), vertical, groups), along(op, (1,), horizontal, groups, op.bias)


SPATIAL_SVD = SpatialSVD()


def spatial_svd(op: Op, rank: int, *, placement: Placement = "balanced") -> Chain:
    """Spatial SVD of a 2-d `Conv` or `ConvTranspose`.

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
    """
    return decompose(SPATIAL_SVD, op, (rank,), placement)
