"""The spectra of a layer as the page shows them: values, marks at ranks, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rankfold.console import count
from rankfold.decompose.evbmf import from_squares
from rankfold.layers.spectrum_record import SHARES, SpectrumRecord, rank_on

_SAMPLE = 64
"""Singular values by which EVBMF estimates the noise. On matrices of low rank under noise, of 24 to
768 rows, the rank is within 5 % of that by all of them, or one off."""
_NAMES = {
    "weight": "Weight matrix",
    "output": "Output channels",
    "input": "Input channels",
    "spatial": "Rows and columns of the kernel",
    "weighted": "Weight, weighted by the calibration data",
}


@dataclass(frozen=True)
class Mark:
    """A rank to be marked in a spectrum.

    Attributes:
        rank: where.
        text: beside it.
        kind: "chosen", "evbmf" or "energy".
    """

    rank: int
    text: str
    kind: str


@dataclass(frozen=True)
class Spectrum:
    """A spectrum for the page.

    Attributes:
        title: names the unfolding.
        points: (rank, singular value over the largest one).
        marks: ranks to be marked.
        words: the same as a text.
    """

    title: str
    points: tuple[tuple[int, float], ...]
    marks: tuple[Mark, ...]
    words: str


def spectra_of(
    records: Sequence[SpectrumRecord], method: str | None, ranks: tuple[int, ...]
) -> tuple[Spectrum, ...]:
    """Return the spectra of a layer.

    Args:
        records: of the plan.
        method: that replaces the layer; None where it stays.
        ranks: of the method.
    """
    return tuple(_spectrum(record, rank_on(method, ranks, record.unfolding)) for record in records)


def _spectrum(record: SpectrumRecord, chosen: int | None) -> Spectrum:
    marks: list[Mark] = []
    points = record.points
    words = f"{record.count} singular values, from 1 down to {points[-1][1]:.2g} of the largest."
    if chosen is not None and chosen <= record.count:
        marks.append(Mark(chosen, f"rank {chosen}", "chosen"))
        value = float(np.interp(chosen, *zip(*points, strict=True)))
        words += f" Kept: the first {chosen}; the last of them is {value:.2g}."
    # EVBMF looks for noise of equal size in every entry, which a norm that weighs them does not
    # leave.
    if record.unfolding != "weighted":
        exact = record.evbmf is not None
        rank = about_evbmf(record.sides, record.levels) if record.evbmf is None else record.evbmf
        about = "" if exact else "about "
        if rank:
            marks.append(Mark(rank, f"EVBMF {'' if exact else '≈ '}{rank}", "evbmf"))
            words += f" EVBMF takes {about}{rank} for structure and the rest for noise."
        else:
            words += " EVBMF finds no structure above the noise."
    for share, rank in zip(SHARES, record.energy, strict=True):
        marks.append(Mark(rank, f"{share:.0%} energy {rank}", "energy"))
    words += f" {SHARES[0]:.0%} of the energy is in the first {record.energy[0]}"
    words += f", {SHARES[1]:.0%} in the first {record.energy[1]}."
    rows, columns = record.sides
    title = f"{_NAMES.get(record.unfolding, record.unfolding)}, {count(rows)} × {count(columns)}"
    return Spectrum(title, points, tuple(marks), words)


@lru_cache(maxsize=4096)
def about_evbmf(sides: tuple[int, int], levels: str) -> int:
    """Return about the rank that EVBMF gives an unfolding, from the values that are recorded.

    Args:
        sides: the (rows, columns) of the unfolding.
        levels: as in `SpectrumRecord`.
    """
    record = SpectrumRecord(unfolding="", sides=sides, levels=levels, energy=(0, 0))
    short, long = sorted(sides)
    places, values = map(np.array, zip(*record.points, strict=True))
    logs = np.log(values)
    squares = np.exp(2.0 * np.interp(np.arange(1, short + 1), places, logs))
    # The free energy is a sum over singular values, so a sample of them at even quantiles has the
    # same minimum, if the matrix that it is of has as many fewer columns and as much less energy.
    if short <= _SAMPLE:
        return from_squares(squares, (short, long)).rank
    share = _SAMPLE / short
    quantiles = (np.arange(_SAMPLE) + 0.5) / share + 0.5
    sample = np.exp(2.0 * np.interp(quantiles, places, logs)) * share
    noise = from_squares(sample, (_SAMPLE, max(_SAMPLE, round(long * share)))).sigma2
    return from_squares(squares, (short, long), noise).rank
