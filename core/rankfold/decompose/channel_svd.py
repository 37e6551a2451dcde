"""Channel SVD: a convolution becomes one of the same kernel with r outputs, then a pointwise one.

The matrix is the unfolding (out, in · positions) of the kernel (Zhang et al., arXiv 1505.06798).
All of the geometry stays on the first stage, the bias goes to the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rankfold.decompose.base import Placement, decompose
from rankfold.decompose.matrix_svd import MatrixSVD
from rankfold.decompose.spectrum import Side
from rankfold.decompose.stages import along, pointwise
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Op


@dataclass(frozen=True)
class ChannelSVD(MatrixSVD):
    """Two stages, k×k then 1×1; ranks are (rank,), per group."""

    name: str = "channel_svd"
    ranks_of_unfoldings: ClassVar[Mapping[str, int]] = {"output": 0, "weight": 0, "weighted": 0}
    _limit: ClassVar[str] = "output channels (or kernel elements) of a group"

    def refuse(self, op: Op) -> str | None:
        """Refuse what is not a convolution."""
        if not isinstance(op, (Conv, ConvTranspose)):
            return f"channel_svd applies to convolutions, not to {type(op).__name__}; use svd"
        return None

    def _side(self, op: Op) -> Side:
        return "output"

    def _channels(self, op: Op) -> int:
        return self._sides(op)[0]

    def _stages(self, op: Op, right: Array, left: Array) -> Chain:
        assert isinstance(op, (Conv, ConvTranspose))
        axes = tuple(range(op.weight.ndim - 2))
        first_weight = right.reshape(-1, *op.weight.shape[1:])
        return along(op, axes, first_weight, op.groups), pointwise(op, left, op.bias)


CHANNEL_SVD = ChannelSVD()


def channel_svd(op: Op, rank: int, *, placement: Placement = "balanced") -> Chain:
    """Decompose a `Conv` or a `ConvTranspose` by channel SVD.

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

    Example:
        >>> op = rf.Conv(np.random.default_rng(0).standard_normal((64, 48, 3, 5)))
        >>> [stage.weight.shape for stage in rf.channel_svd(op, 16)]
        [(16, 48, 3, 5), (64, 16, 1, 1)]
    """
    return decompose(CHANNEL_SVD, op, (rank,), placement)
