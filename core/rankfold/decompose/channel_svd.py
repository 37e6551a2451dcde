"""Channel SVD: a convolution becomes one of the same kernel with r outputs, then a pointwise one.

The matrix is the unfolding (out, in · positions) of the kernel (Zhang et al., arXiv 1505.06798).
All of the geometry stays on the first stage, the bias goes to the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rankfold.decompose.base import Factorization, Placement, RankTuple, Unfolding, decompose
from rankfold.decompose.reduced_rank_regression import offered, projection
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.stages import along, cast, check_ranks, place_scale, pointwise
from rankfold.linalg import Array, inner
from rankfold.ops import Chain, Conv, Convolution, ConvTranspose, Op, blank


class ChannelSVD:
    """Two stages, k×k then 1×1; ranks are (rank,), per group."""

    name = "channel_svd"

    def refuse(self, op: Op) -> str | None:
        """Refuses what is not a convolution."""
        if not isinstance(op, (Conv, ConvTranspose)):
            return f"channel_svd applies to convolutions, not to {type(op).__name__}; use svd"
        return None

    def max_ranks(self, op: Op) -> RankTuple:
        """The smaller side of the unfolding of one group."""
        out = op.weight.shape[0] // op.groups
        return (min(out, math.prod(op.weight.shape[1:])),)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """The output unfolding."""
        sides = spectrum.matrix.shape[1:]

        def values() -> Array:
            return spectrum.output.values[:, : min(sides)]

        return (Unfolding(values, sides, sides[0], spectrum.scale),)

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """The rank of the unfolding."""
        return unfolding_ranks

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Shapes of (k×k, pointwise)."""
        assert isinstance(op, (Conv, ConvTranspose))
        limit = "output channels (or kernel elements) of a group"
        (rank,) = check_ranks(self.name, op, ranks, self.max_ranks(op), (limit,))
        out, into = op.weight.shape[0] // op.groups, op.weight.shape[1]
        first = blank(op.groups * rank, into, *op.weight.shape[2:])
        return self._chain(op, first, blank(op.groups, out, rank))

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float]]:
        """Exact errors, from the eigenvalues."""
        eigen = spectrum.output if spectrum.metric is None else spectrum.weighted
        return offered(eigen.values, spectrum.weight_of_all, self.max_ranks(op)[0], multiple_of)

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Projects the unfolding on its leading left singular vectors."""
        assert isinstance(op, (Conv, ConvTranspose))
        if spectrum.metric is not None:
            right, left = projection(spectrum, ranks[0])
            error = spectrum.distance(np.matmul(left, right))
        else:
            left = spectrum.leading("output", ranks[0])
            right = left.mT @ spectrum.matrix
            error = spectrum.relative_error(inner(right, right))
        right, left = place_scale(right, left, spectrum.scale, placement)
        first = right.reshape(-1, *op.weight.shape[1:])
        return Factorization(cast(self._chain(op, first, left), op), error)

    @staticmethod
    def _chain(op: Convolution, first: Array, last: Array) -> Chain:
        every = tuple(range(op.weight.ndim - 2))
        return along(op, every, first, op.groups), pointwise(op, last, op.bias)


CHANNEL_SVD = ChannelSVD()


def channel_svd(op: Op, rank: int, *, placement: Placement = "balanced") -> Chain:
    """Channel SVD of a `Conv` or a `ConvTranspose`.

    Args:
        op: weight (out, in/groups, *kernel).
        rank: 1 to min(out/groups, in/groups · positions), per group.
        placement: "balanced" splits the singular values evenly, "classical" puts them into the
            first stage.

    Returns:
        (k×k convolution of the class of `op`, pointwise `Conv` with the bias).

    Raises:
        RankfoldError: the op does not fit, the rank is out of range, or the weight is empty, all
            zero or not finite.
    """
    return decompose(CHANNEL_SVD, op, (rank,), placement)
