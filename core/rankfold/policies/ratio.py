"""`Ratio`: a fixed share of the channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

from rankfold.decompose.base import Unfolding
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each
from rankfold.policies.base import Choice, Judges, check_share, fraction
from rankfold.policies.best_method import best_method


@dataclass(frozen=True)
class Ratio:
    """Takes the same share of each channel count, rounded down, at least 1.

    Tucker-2 takes it of the output and of the input channels, CP of the larger of the two, a
    matrix of its smaller side.

    Args:
        share: above 0 and up to 1.

    Raises:
        RankfoldError: the share is out of range.

    Example:
        >>> layers = nn.Conv2d(32, 48, 3), nn.Linear(64, 128), nn.Linear(128, 10)
        >>> plan = rf.plan(nn.Sequential(*layers), rf.Ratio(0.25))
        >>> plan["0"].ranks, plan["1"].ranks
        ((12, 8), (16,))
    """

    share: float
    name: ClassVar[str] = "ratio"
    judges: ClassVar[Judges] = "layer"

    def __post_init__(self) -> None:
        check_share("Ratio", self.share)

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, layer by layer."""
        choose = partial(best_method, rank_of=self._rank, zero_rank_reason="rank 0")
        return each(layers, choose)

    def _rank(self, mode: Unfolding) -> int:
        rank = max(1, math.floor(self.share * mode.channels + 1e-9))
        return min(rank, *mode.sides)

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """`ratio:SHARE`, as 0.33 or 1/3."""
        return cls(fraction("ratio", argument))
