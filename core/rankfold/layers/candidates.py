"""Candidates to replace a layer by, and what they cost and lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankfold.decompose.base import RankTuple
from rankfold.layers.spectrum_record import SpectrumLog
from rankfold.ops import Chain, Cost, Pivots


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to decompose a layer: its chain, what it costs and what it loses.

    Attributes:
        error: ‖W − Ŵ‖ / ‖W‖ of the weight.
        loss: what it costs in the loss, up to a factor that all layers share; without calibration
            data the square of `error`.
        output: predicted ‖y − ŷ‖ / ‖y‖ of the output; None without calibration data.
        remark: what to know of how it was found.
        sensitivity: of a CP model; see `rankfold.decompose.base.Factorization`.
        pivots: of the interpolative stages of the chain.
    """

    method: str
    ranks: RankTuple
    chain: Chain
    cost: Cost
    error: float
    loss: float
    output: float | None = None
    remark: str = ""
    sensitivity: float | None = None
    pivots: tuple[Pivots, ...] = ()


@dataclass(frozen=True)
class Offer:
    """Cost and loss of a method at some ranks, without its chain; its time if measured."""

    method: str
    ranks: RankTuple
    cost: Cost
    loss: float
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Priced:
    """Offers of the allowed methods of a layer, and what was learnt on the way to them.

    Attributes:
        offers: those that do not grow and that no other one beats.
        fronts: the same of ordinary chains and of interpolative ones, each for itself: which of
            them is faster is not told by their costs.
        losses: by method, the loss at all ranks that were looked at, those that grow included.
        failures: by method, why it offers nothing.
    """

    offers: list[Offer]
    fronts: tuple[list[Offer], ...]
    losses: Mapping[str, Mapping[RankTuple, float]]
    failures: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class LayerCache:
    """Results about a layer, to be taken to another process or back from there.

    Attributes:
        priced: by multiple of the ranks.
        candidates: by method and ranks.
        spectra: what is recorded of them.
    """

    priced: Mapping[int, Priced]
    candidates: Mapping[tuple[str, RankTuple], Candidate]
    spectra: SpectrumLog


def undominated(offers: list[Offer]) -> list[Offer]:
    """Return the offers that no other one beats in parameters, in MACs and in loss at once."""
    kept: list[Offer] = []
    # In the order of their losses only an earlier offer can beat a later one, so that costs are all
    # that is left to compare. Of equal ones the first is kept.
    for offer in sorted(offers, key=lambda o: (o.loss, o.cost.params, o.cost.macs)):
        if not any(other.cost.within(offer.cost) for other in kept):
            kept.append(offer)
    return kept


def spread(offers: Sequence[Offer], count: int) -> list[Offer]:
    """Pick some of the offers, from the least to the greatest loss."""
    if len(offers) <= count:
        return list(offers)
    # Both ends are among them: the most accurate one and the cheapest one bound what can be had.
    return [offers[round(i * (len(offers) - 1) / (count - 1))] for i in range(count)]
