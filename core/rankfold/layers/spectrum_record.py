"""Records of a layer's spectra in a plan: a few dozen singular values, and where energy ends.

Only spectra that a policy or a method has asked for are recorded: the record costs no eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
import numpy as np

from rankfold.decompose.base import RankTuple
from rankfold.decompose.spectrum import Spectrum
from rankfold.linalg import Array, host

SHARES = (0.9, 0.99)
"""Of the energy, the squared norm, whose ranks are recorded."""
UNFOLDINGS = ("weight", "output", "input", "spatial", "weighted")
"""The names of unfoldings, in the order in which they are listed."""
_POINTS = 24
"""Of each kind of place: even ones for the eye, geometric ones for the steep beginning."""
_STEPS = 200.0
"""Steps of a level to a factor of ten: each is 1.2 %, less than a line in a picture is wide."""
_FIRST = 0.75
"""Share of the values among which a gap is looked for; the smallest ones fall steeply by chance."""
_LOWEST = 1200
"""The level of 10⁻⁶, at which singular values from squares are rounding."""
MOST = 2**24
"""No side of an unfolding is longer."""


class SpectrumRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Singular values of one unfolding of a weight, as far as a picture shows them.

    Attributes:
        unfolding: "weight" for a matrix; "output", "input" or "spatial" for a kernel; "weighted"
            for the matrix in the norm of the calibration data.
        sides: the (rows, columns) of the unfolding of one group.
        levels: singular values at `ranks`, in steps of 10^(1/200) below the largest, with blanks
            between them; of groups the root of their mean square.
        gap: the rank before the steepest fall among the first three quarters.
        energy: the ranks that hold 90 and 99 % of the squared norm.
        evbmf: the rank that EVBMF gives it; None where no policy asked.
        kept: the rank that the layer's method keeps of it; None where it ranks others or there is
            none.
    """

    unfolding: str
    sides: tuple[int, int]
    levels: str
    gap: int
    energy: tuple[int, int]
    evbmf: int | None = None
    kept: int | None = None

    @classmethod
    def of(cls, unfolding: str, sides: tuple[int, int], squares: Array) -> SpectrumRecord | None:
        """Record squared singular values (groups, k), descending; None where all are 0."""
        total = host(squares).sum(axis=0)[: min(sides)]
        if not len(total) or not 0.0 < total[0] < math.inf:
            return None
        with np.errstate(divide="ignore"):
            levels = -0.5 * _STEPS * np.log10(np.maximum(total, 0.0) / total[0])
        levels = np.minimum(levels, _LOWEST)
        # Of a weight of low rank under noise this is its rank, between two points of any grid.
        falls = np.diff(levels[: max(2, round(_FIRST * len(levels)))])
        gap = int(np.argmax(falls)) + 1 if len(falls) else 1
        steps = np.round(levels[_grid(len(total), gap) - 1]).astype(int)
        kept = np.cumsum(total)
        limits = [share * kept[-1] * (1.0 - 1e-12) for share in SHARES]
        ranks = [int(np.argmax(kept >= limit)) + 1 for limit in limits]
        return cls(
            unfolding=unfolding,
            sides=sides,
            levels=" ".join(map(str, steps.tolist())),
            gap=gap,
            energy=(ranks[0], ranks[1]),
        )

    @property
    def count(self) -> int:
        """The number of singular values."""
        return min(self.sides)

    @property
    def ranks(self) -> Array:
        """The ranks at which singular values are recorded, ascending, both ends included."""
        return _grid(self.count, self.gap)

    @property
    def values(self) -> Array:
        """The singular values there, over the largest one."""
        return 10.0 ** (np.array(self.levels.split(), dtype=np.float64) / -_STEPS)

    @property
    def why_not(self) -> str:
        """Say what is wrong with a record from elsewhere; "" where nothing is."""
        if self.unfolding not in UNFOLDINGS:
            return f"an unfolding {self.unfolding!r}"
        if not all(1 <= side <= MOST for side in self.sides):
            return f"sides {self.sides}"
        levels = self.levels.split()
        if not all(level.isascii() and level.isdigit() and len(level) < 6 for level in levels):
            return "levels that are no numbers"
        marks = [self.gap, *self.energy, *(() if self.evbmf is None else (self.evbmf,))]
        if self.gap < 1 or not all(0 <= mark <= self.count for mark in marks):
            return f"ranks {marks} of {self.count}"
        if self.kept is not None and self.kept < 1:
            return f"a rank of {self.kept}"
        if len(levels) != len(self.ranks):
            return f"{len(levels)} levels of {len(self.ranks)}"
        return ""


def _grid(count: int, gap: int) -> Array:
    return np.array(sorted(_even_and_steep(count) | {gap, min(gap + 1, count)}))


@lru_cache(maxsize=1024)
def _even_and_steep(count: int) -> frozenset[int]:
    even = np.linspace(1, count, min(count, _POINTS))
    steep = np.geomspace(1, count, min(count, _POINTS))
    return frozenset(np.round(np.concatenate([even, steep])).astype(int).tolist())


def telling(
    records: Sequence[SpectrumRecord], places: Mapping[str, int], chosen: RankTuple
) -> tuple[SpectrumRecord, ...]:
    """Return the records that tell of a choice: those whose rank it is, all where none is.

    Args:
        records: of a layer.
        places: the place of its rank in a choice, by the name of an unfolding; see
            `RanksUnfoldings`. Empty for a layer that is left alone.
        chosen: the ranks.
    """
    ranks = {name: chosen[index] for name, index in places.items() if index < len(chosen)}
    marked = [msgspec.structs.replace(r, kept=ranks.get(r.unfolding)) for r in records]
    kept = [record for record in marked if record.kept is not None]
    return tuple(sorted(kept or marked, key=lambda record: UNFOLDINGS.index(record.unfolding)))


class SpectrumLog:
    """The records of one layer, as its spectra are computed and forgotten.

    What was asked for is the same whichever process asked, so that records of several add up to
    those of one.
    """

    def __init__(self) -> None:
        self._records: dict[str, SpectrumRecord] = {}
        self._evbmf: dict[str, int] = {}

    @property
    def records(self) -> tuple[SpectrumRecord, ...]:
        """The records so far."""
        return tuple(
            msgspec.structs.replace(record, evbmf=self._evbmf.get(name))
            for name, record in self._records.items()
        )

    def take(self, spectrum: Spectrum) -> None:
        """Record what was computed of a spectrum."""
        for name, (sides, squares) in spectrum.computed().items():
            if name not in self._records:  # not anew at each release
                record = SpectrumRecord.of(name, sides, squares)
                if record is not None:
                    self._records[name] = record

    def note_evbmf(self, unfolding: str, rank: int) -> None:
        """Record the rank that EVBMF gave an unfolding."""
        if unfolding:
            self._evbmf[unfolding] = rank

    def merge(self, other: SpectrumLog) -> None:
        """Take over what was recorded elsewhere."""
        self._records.update(other._records)
        self._evbmf.update(other._evbmf)
