"""`Energy`: the least rank that keeps a share of the squared Frobenius norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import numpy as np

from rankfold.decompose.base import Unfolding
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each
from rankfold.linalg import Array
from rankfold.policies.base import Choice, Judges, check_share, fraction
from rankfold.policies.best_method import best_method


@dataclass(frozen=True)
class Energy:
    """Keeps, in each unfolding, the leading components that hold a share of its energy.

    Args:
        share: of the squared Frobenius norm, above 0 and up to 1. Kept in every mode of a layer
            separately: of a Tucker-2 with two modes at least 2·share − 1 is kept.

    Raises:
        RankfoldError: the share is out of range.

    Example:
        >>> layer = nn.Linear(48, 64)  # weight (64, 48) with three singular values: 4, 3, 1
        >>> layer.weight.data = torch.eye(64, 48) * torch.tensor([4.0, 3.0, 1.0] + 45 * [0.0])
        >>> rf.plan(nn.Sequential(layer, nn.ReLU()), rf.Energy(0.9))["0"].ranks  # 25 of 26
        (2,)
    """

    share: float
    name: ClassVar[str] = "energy"
    judges: ClassVar[Judges] = "layer"

    def __post_init__(self) -> None:
        check_share("Energy", self.share)

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, layer by layer."""
        choose = partial(best_method, rank_of=self._rank, zero_rank_reason="rank 0: no energy")
        return each(layers, choose)

    def _rank(self, mode: Unfolding) -> int:
        return energy_rank(mode.values.sum(axis=0), self.share)

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """`energy:SHARE`."""
        return cls(fraction("energy", argument))


def energy_rank(squares: Array, share: float) -> int:
    """Return the least rank whose squared singular values (descending) hold that share."""
    # 1 − 1e-12: a share of 1 must not fail on the rounding of the sum.
    energy = np.cumsum(squares)
    enough = energy >= share * energy[-1] * (1.0 - 1e-12)
    return int(np.argmax(enough)) + 1
