"""The spectra of a layer as the page shows them: values, marks at ranks, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rankfold.console import count
from rankfold.decompose.evbmf import from_squares
from rankfold.layers.spectrum_record import SHARES, SpectrumRecord
from rankfold.linalg import Array

_SAMPLE = 64
"""Singular values by which EVBMF estimates the noise. On matrices of low rank under noise, of 24 to
768 rows, the rank is within 5 % of that by all of them, or one off."""
_ROUNDS = 1
"""Of narrowing: the noise is then known to some 0.5 %, and the values to 1 % anyway."""
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


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A spectrum for the page.

    Attributes:
        title: names the unfolding.
        ranks: at which there are values.
        values: singular values over the largest one.
        marks: ranks to be marked.
        words: the same as a text.
    """

    title: str
    ranks: Array
    values: Array
    marks: tuple[Mark, ...]
    words: str


def spectra_of(records: Sequence[SpectrumRecord], ranks: tuple[int, ...]) -> tuple[Spectrum, ...]:
    """Return the spectra of a layer.

    Args:
        records: of the plan.
        ranks: of the method that replaces the layer; none where it stays.
    """
    # A plan that was changed by hand may have records of other ranks.
    return tuple(_spectrum(r, r.kept if r.kept in ranks else None) for r in records)


def _spectrum(record: SpectrumRecord, chosen: int | None) -> Spectrum:
    marks: list[Mark] = []
    values = record.values
    words = f"{record.count} singular values, down to {values[-1]:.2g} of the largest."
    if chosen is not None and chosen <= record.count:
        marks.append(Mark(chosen, f"rank {chosen}", "chosen"))
        value = float(np.interp(float(chosen), record.ranks, values))
        words += f" Kept: {chosen}, the last of them at {value:.2g}."
    # EVBMF looks for noise of equal size in every entry, which a norm that weighs them does not
    # leave.
    if record.unfolding != "weighted":
        exact = record.evbmf
        rank = about_evbmf(record.sides, record.levels, record.gap) if exact is None else exact
        if rank:
            marks.append(Mark(rank, f"EVBMF {'≈ ' if exact is None else ''}{rank}", "evbmf"))
        words += f" EVBMF: {'about ' if exact is None and rank else ''}{rank or 'no structure'}."
    for share, rank in zip(SHARES, record.energy, strict=True):
        marks.append(Mark(rank, f"{share:.0%} energy {rank}", "energy"))
    shares = (f"{r} for {s:.0%}" for s, r in zip(SHARES, record.energy, strict=True))
    words += f" Energy: {', '.join(shares)}."
    rows, columns = record.sides
    title = f"{_NAMES.get(record.unfolding, record.unfolding)}, {count(rows)} × {count(columns)}"
    return Spectrum(title, record.ranks, values, tuple(marks), words)


@lru_cache(maxsize=4096)
def about_evbmf(sides: tuple[int, int], levels: str, gap: int) -> int:
    """Return about the rank that EVBMF gives an unfolding, from the values that are recorded.

    Args:
        sides: the (rows, columns) of the unfolding.
        levels: as in `SpectrumRecord`.
        gap: the same.
    """
    record = SpectrumRecord(unfolding="", sides=sides, levels=levels, gap=gap, energy=(0, 0))
    short, long = sorted(sides)
    places, logs = record.ranks, np.log(record.values)
    squares = np.exp(2.0 * np.interp(np.arange(1, short + 1), places, logs))
    # The free energy is a sum over singular values, so a sample of them at even quantiles has the
    # same minimum, if the matrix that it is of has as many fewer columns and as much less energy.
    if short <= _SAMPLE:
        return from_squares(squares, (short, long), rounds=_ROUNDS).rank
    share = _SAMPLE / short
    quantiles = (np.arange(_SAMPLE) + 0.5) / share + 0.5
    sample = np.exp(2.0 * np.interp(quantiles, places, logs)) * share
    shape = (_SAMPLE, max(_SAMPLE, round(long * share)))
    noise = from_squares(sample, shape, rounds=_ROUNDS).sigma2
    return from_squares(squares, (short, long), noise).rank
