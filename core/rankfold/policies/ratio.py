"""`Ratio`: a fixed share of the channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, SupportsFloat

from rankfold.decompose.base import Unfolding
from rankfold.errors import RankfoldError
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each
from rankfold.policies.base import Choice, Judges, fraction
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
    """

    share: float
    name: ClassVar[str] = "ratio"
    judges: ClassVar[Judges] = "layer"

    def __post_init__(self) -> None:
        if not isinstance(self.share, SupportsFloat) or not 0.0 < self.share <= 1.0:
            raise RankfoldError(f"Ratio: share {self.share!r}; use one above 0 and up to 1")

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, layer by layer."""
        yield from each(layers, self._choose)

    def _choose(self, layer: Layer) -> Choice:
        return best_method(
            layer,
            self._rank,
            zero_rank_reason="rank 0",
        )

    def _rank(self, mode: Unfolding) -> int:
        rank = max(1, math.floor(self.share * mode.channels + 1e-9))
        return min(rank, *mode.sides)

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """`ratio:SHARE`, as 0.33 or 1/3."""
        return cls(fraction("ratio", argument))
