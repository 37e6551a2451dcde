"""Truncated singular value decomposition: a layer that is a matrix becomes two.

W (out, in) ≈ A B with A (out, r) and B (r, in): the best approximation of that rank (Eckart and
Young, Psychometrika 1, 1936). It applies to `Linear`, to `Embedding` (a smaller table and a Linear
behind it) and to convolutions whose kernel is 1 everywhere; the bias goes to the last layer, and
the geometry of a convolution stays on the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rankfold import linalg
from rankfold.decompose.base import Placement, decompose
from rankfold.decompose.matrix_svd import MatrixSVD
from rankfold.decompose.spectrum import Side, Spectrum
from rankfold.decompose.stages import along, pointwise
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op


@dataclass(frozen=True)
class TruncatedSVD(MatrixSVD):
    """Two layers from the matrix of one; ranks are (rank,), per group.

    Attributes:
        exact: whether the singular vectors are always those of an eigendecomposition. Otherwise,
            where a few of a large matrix are wanted, they span a subspace found by sampling.
    """

    name: str = "svd"
    exact: bool = False
    ranks_of_unfoldings: ClassVar[Mapping[str, int]] = {"weight": 0, "weighted": 0}
    _limit: ClassVar[str] = "input or output channels of a group"

    def refuse(self, op: Op) -> str | None:
        """Refuse transposed convolutions and kernels longer than 1."""
        if isinstance(op, ConvTranspose):
            return "svd does not apply to a ConvTranspose; use channel_svd"
        if isinstance(op, Conv) and max(op.weight.shape[2:]) > 1:
            return "svd needs a kernel of 1 along every axis; use channel_svd"
        return None

    def surpassed(self, op: Op) -> str | None:
        """Return None: at its rank no method loses less; see `NamesBetterMethod`."""
        return None

    def _side(self, op: Op) -> Side:
        rows, columns = self._sides(op)
        return "output" if rows <= columns else "input"

    def _truncated(
        self, op: Op, spectrum: Spectrum, rank: int, rng: np.random.Generator
    ) -> tuple[Array, Array, float, str]:
        left, right, kept, remark = spectrum.factors(rank, rng, exact=self.exact)
        alive = (spectrum.matrix != 0.0).any(axis=2)[:, :, None]
        left = left * linalg.cast(alive, left.dtype)  # rows of zeros get no rounding errors
        return left, right, kept, remark

    def _stages(self, op: Op, right: Array, left: Array) -> Chain:
        if isinstance(op, Embedding):
            return Embedding(right[0].T), Linear(left[0])
        if isinstance(op, Linear):
            first = Linear(right.reshape(-1, right.shape[2]), groups=op.groups)
            return first, Linear(left.reshape(-1, left.shape[2]), op.bias, op.groups)
        assert isinstance(op, Conv)
        axes = tuple(range(op.weight.ndim - 2))
        first_weight = right.reshape(-1, *op.weight.shape[1:])
        return along(op, axes, first_weight, op.groups), pointwise(op, left, op.bias)


SVD = TruncatedSVD()


def truncated_svd(
    op: Op, rank: int, *, placement: Placement = "balanced", exact: bool = False
) -> Chain:
    """Decompose a `Linear`, an `Embedding` or a `Conv` with kernel 1 by truncated SVD.

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

    Example:
        >>> op = rf.Linear(np.random.default_rng(0).standard_normal((64, 48)))
        >>> [stage.weight.shape for stage in rf.truncated_svd(op, 16)]
        [(16, 48), (64, 16)]
    """
    return decompose(TruncatedSVD(exact=bool(exact)), op, (rank,), placement)
