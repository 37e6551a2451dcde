"""`VBMF`: ranks from empirical variational Bayesian matrix factorisation of the unfoldings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, SupportsFloat

from rankfold.decompose.base import Unfolding
from rankfold.decompose.evbmf import from_squares
from rankfold.errors import RankfoldError
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each
from rankfold.policies.base import Choice, Judges, fraction
from rankfold.policies.best_method import best_method

_FEW_ROWS = 32
"""EVBMF is exact where both sides of a matrix are large. On a trained ten-row classifier it gave
rank 1, and 12.8 % in place of 94.8 % right."""


@dataclass(frozen=True)
class VBMF:
    """Keeps the components of each unfolding that stand out of its noise.

    Where the true rank is a large share of the channels EVBMF finds nothing and the layer is left
    alone: that is the method. `Energy` serves there. The groups of a grouped convolution get the
    largest of their ranks. The plan says where a rank rests on a matrix of fewer than 32 rows, or
    columns where those are fewer: it says little.

    Args:
        weaken: how far to go from the EVBMF rank R_vbmf (0.0) towards the full rank R (1.0), as
            R_vbmf + weaken·(R − R_vbmf).
        sigma2: the noise variance of a weight, where it is known; None estimates it.

    Raises:
        RankfoldError: an argument is out of range.

    Example:
        >>> layer = nn.Linear(300, 200)  # weight (200, 300): rank 8 under noise
        >>> noise = 0.1 * torch.randn(200, 300)
        >>> layer.weight.data = torch.randn(200, 8) @ torch.randn(8, 300) + noise
        >>> rf.plan(nn.Sequential(layer, nn.ReLU()), rf.VBMF())["0"].ranks
        (8,)
    """

    weaken: float = 0.0
    sigma2: float | None = None
    name: ClassVar[str] = "vbmf"
    judges: ClassVar[Judges] = "layer"

    def __post_init__(self) -> None:
        if not isinstance(self.weaken, SupportsFloat) or not 0.0 <= self.weaken <= 1.0:
            raise RankfoldError(f"VBMF: weaken {self.weaken!r}; use one from 0 to 1")
        if self.sigma2 is not None and not (
            isinstance(self.sigma2, SupportsFloat) and 0.0 < self.sigma2 < float("inf")
        ):
            raise RankfoldError(f"VBMF: sigma2 {self.sigma2!r}; a noise variance is positive")

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, layer by layer."""
        return each(layers, self._choose)

    def _choose(self, layer: Layer) -> Choice:
        ranked: list[Unfolding] = []

        def rank(mode: Unfolding) -> int:
            ranked.append(mode)
            plain = self._plain_rank(mode)
            if self.sigma2 is None:
                layer.spectra.note_evbmf(mode.name, plain)
            return plain and plain + round(self.weaken * (min(mode.sides) - plain))

        nothing = "rank 0: EVBMF found no structure above the noise"
        choice = best_method(layer, rank, zero_rank_reason=nothing)
        rows = min((min(mode.sides) for mode in ranked), default=_FEW_ROWS)
        if rows >= _FEW_ROWS:
            return choice
        few = f"EVBMF had {rows} rows to go by: fewer than {_FEW_ROWS} say little of a rank"
        return replace(choice, reason=f"{choice.reason}; {few}" if choice.reason else few)

    def _plain_rank(self, mode: Unfolding) -> int:
        noise = None if self.sigma2 is None else self.sigma2 / mode.scale / mode.scale
        return max(from_squares(group, mode.sides, noise).rank for group in mode.values)

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """`vbmf` or `vbmf:WEAKEN`."""
        return cls(fraction("vbmf", argument, default=0.0))
