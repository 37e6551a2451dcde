"""Truncated singular value decomposition: a layer that is a matrix becomes two.

W (out, in) ≈ A B with A (out, r) and B (r, in): the best approximation of that rank (Eckart and
Young, Psychometrika 1, 1936). It applies to `Linear`, to `Embedding` (a smaller table and a Linear
behind it) and to convolutions whose kernel is 1 everywhere; the bias goes to the last layer, and
the geometry of a convolution stays on the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.decompose.base import Factorization, Placement, RankTuple, Unfolding, decompose
from rankfold.decompose.reduced_rank_regression import offered, projection
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.stages import along, cast, check_ranks, place_scale, pointwise
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op, blank


@dataclass(frozen=True)
class TruncatedSVD:
    """Two layers from the matrix of one; ranks are (rank,), per group.

    Attributes:
        exact: whether the singular vectors are always those of an eigendecomposition. Otherwise,
            where a few of a large matrix are wanted of which nothing is known yet, they span a
            subspace found by sampling.
        name: "svd".
    """

    exact: bool = False
    name: str = "svd"

    def refuse(self, op: Op) -> str | None:
        """Refuses transposed convolutions and kernels longer than 1."""
        if isinstance(op, ConvTranspose):
            return "svd does not apply to a ConvTranspose; use channel_svd"
        if isinstance(op, Conv) and max(op.weight.shape[2:]) > 1:
            return "svd needs a kernel of 1 along every axis; use channel_svd"
        return None

    def max_ranks(self, op: Op) -> RankTuple:
        """The smaller side of the matrix of one group."""
        return (min(op.weight.shape[0] // op.groups, op.weight.shape[1]),)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """The matrix itself."""
        sides = (op.weight.shape[0] // op.groups, op.weight.shape[1])
        wide = sides[0] <= sides[1]

        def values() -> Array:
            return (spectrum.output if wide else spectrum.input).values

        return (Unfolding(values, sides, min(sides), spectrum.scale),)

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """The rank of the matrix."""
        return unfolding_ranks

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Shapes of (first, last)."""
        limit = "input or output channels of a group"
        (rank,) = check_ranks(self.name, op, ranks, self.max_ranks(op), (limit,))
        out, into = op.weight.shape[0] // op.groups, op.weight.shape[1]
        return self._chain(op, blank(op.groups, rank, into), blank(op.groups, out, rank))

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float]]:
        """Exact errors, from the eigenvalues."""
        weighted = spectrum.metric is not None
        values = spectrum.weighted.values if weighted else self.modes(op, spectrum)[0].values
        return offered(values, spectrum.weight_of_all, self.max_ranks(op)[0], multiple_of)

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Projects the matrix on the leading singular vectors of its smaller side."""
        (rank,) = ranks
        if spectrum.metric is not None:
            right, left = projection(spectrum, rank)
            error = spectrum.distance(np.matmul(left, right))
            right, left = place_scale(right, left, spectrum.scale, placement)
            if isinstance(op, Embedding):
                right, left = left.mT, right.mT
            return Factorization(cast(self._chain(op, right, left), op), error)
        left, right, kept, how = spectrum.factors(rank, rng, exact=self.exact)
        alive = (spectrum.matrix != 0.0).any(axis=2)[:, :, None]
        left = left * linalg.cast(alive, left.dtype)  # rows of zeros get no rounding errors
        if isinstance(op, Embedding):  # the table is applied first
            last, first = place_scale(left.mT, right.mT, spectrum.scale, placement)
            right, left = first.mT, last.mT
        else:
            right, left = place_scale(right, left, spectrum.scale, placement)
        chain = cast(self._chain(op, right, left), op)
        return Factorization(chain, spectrum.relative_error(kept), how)

    @staticmethod
    def _chain(op: Op, right: Array, left: Array) -> Chain:
        if isinstance(op, Embedding):
            return Embedding(left[0]), Linear(right[0].T)
        if isinstance(op, Linear):
            first = Linear(right.reshape(-1, right.shape[2]), groups=op.groups)
            return first, Linear(left.reshape(-1, left.shape[2]), op.bias, op.groups)
        assert isinstance(op, Conv)
        kernel = op.weight.shape[2:]
        weight = right.reshape(-1, op.weight.shape[1], *kernel)
        conv = along(op, tuple(range(len(kernel))), weight, op.groups)
        return conv, pointwise(op, left, op.bias)


SVD = TruncatedSVD()


def truncated_svd(
    op: Op, rank: int, *, placement: Placement = "balanced", exact: bool = False
) -> Chain:
    """Truncated SVD of a `Linear`, an `Embedding` or a `Conv` with kernel 1.

    Args:
        op: weight (out, in/groups), (num_embeddings, embedding_dim) or (out, in/groups, 1, ...).
        rank: 1 to the smaller side of the matrix; of each group for a grouped convolution.
        placement: "balanced" splits the singular values evenly, "classical" puts them into the
            first layer.
        exact: whether the error is the least there is. Otherwise, for matrices of order 512 and
            more and ranks up to 15 % of it, the subspace is found by sampling, many times faster,
            at an error some 0.5 % above the least.

    Returns:
        (Linear, Linear), (Embedding, Linear) or (Conv, Conv); only the last has the bias.

    Raises:
        RankfoldError: the op does not fit, the rank is out of range, or the weight is empty, all
            zero or not finite.
    """
    return decompose(TruncatedSVD(exact=bool(exact)), op, (rank,), placement)
