"""The layers of a plan as rows of the page's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankfold.console import count, printable
from rankfold.report.facts import LayerFacts, SensitivityFacts
from rankfold.report.spectra import Spectrum, spectra_of
from rankfold.report.words import method_name

_PRINTED = 24
"""Layers on paper, unless all are asked for: with them and all charts a report has two pages."""


@dataclass(frozen=True)
class Change:
    """A count before and after.

    Attributes:
        before: the count of the original layer.
        after: that of what is in its place.
    """

    before: int
    after: int

    @property
    def share(self) -> float:
        """Share that is left; 1 where there was nothing."""
        return self.after / self.before if self.before else 1.0

    @property
    def text(self) -> str:
        """Both counts, or one where they are equal."""
        same = self.before == self.after
        return count(self.before) if same else f"{count(self.before)} → {count(self.after)}"

    @property
    def percent(self) -> str:
        """The share that is left."""
        return percent(self.share)


@dataclass(frozen=True)
class Row:
    """One layer of the table.

    Attributes:
        index: its place in the model.
        name: its path.
        kind: what it is.
        replaced: whether it is decomposed.
        what: what was done.
        note: why it is left alone, or a remark.
        params: its parameters; None where they are not known.
        macs: its multiply-accumulates; None where they are not counted.
        error: of the weight.
        predicted: error of the output from the moments.
        measured: error of the output from a run.
        spectra: that are recorded.
        facts: further ones, each with its name.
        scores: of the model with this layer alone compressed: (share of its cost, score), from the
            original on.
        printed: whether it is among the dearest layers, which alone are printed if there are many.
    """

    index: int
    name: str
    kind: str
    replaced: bool
    what: str
    note: str
    params: Change | None
    macs: Change | None
    error: float | None
    predicted: float | None
    measured: float | None
    spectra: tuple[Spectrum, ...]
    facts: tuple[tuple[str, str], ...]
    scores: tuple[tuple[float, float], ...] = ()
    printed: bool = True

    @property
    def output_error(self) -> float | None:
        """The error that says most: of the output as measured, as predicted, or of the weight."""
        for error in (self.measured, self.predicted, self.error):
            if error is not None:
                return error
        return None


def rows_of(layers: Sequence[LayerFacts], sensitivity: SensitivityFacts | None = None) -> list[Row]:
    """Return the rows of all layers, in the model's order.

    Args:
        layers: of the plan.
        sensitivity: scores of the model with one layer compressed, where they were measured.
    """
    scores: dict[str, list[tuple[float, float]]] = {}
    for score in () if sensitivity is None else sensitivity.scores:
        assert sensitivity is not None
        scores.setdefault(score.path, [(1.0, sensitivity.original)])
        scores[score.path].append((score.share, score.score))
    rows = [
        replace(_row(index, layer), scores=tuple(scores.get(layer.path, ())))
        for index, layer in enumerate(layers)
    ]
    dearest = {row.index for row in sorted(rows, key=_cost, reverse=True)[:_PRINTED]}
    return [replace(row, printed=row.index in dearest) for row in rows]


def _cost(row: Row) -> tuple[int, int]:
    """Return what a layer cost in the original, multiply-accumulates first."""
    macs, params = (0 if change is None else change.before for change in (row.macs, row.params))
    return macs, params


def _row(index: int, layer: LayerFacts) -> Row:
    replaced = layer.method is not None
    spectra = spectra_of(layer.spectra, layer.ranks)
    return Row(
        index=index,
        name=printable(layer.path) or "(the model)",
        kind=printable(layer.op),
        replaced=replaced,
        what=_what(layer),
        note=printable(layer.reason),
        params=None if layer.params is None else Change(*layer.params),
        macs=None if layer.macs is None else Change(*layer.macs),
        error=_finite(layer.error) if replaced else None,
        predicted=_finite(layer.predicted),
        measured=_finite(layer.measured),
        spectra=spectra,
        facts=tuple(_facts(layer, spectra)),
    )


def _finite(value: float | None) -> float | None:
    # A model whose outputs overflow has errors that are no numbers, and JSON knows none such.
    return value if value is not None and math.isfinite(value) else None


def _what(layer: LayerFacts) -> str:
    if layer.method is None:
        return "left alone, refitted" if layer.refit else "left alone"
    ranks = ", ".join(map(str, layer.ranks))
    return f"{printable(method_name(layer.method))}, rank{'s' * (len(layer.ranks) > 1)} {ranks}"


def _facts(layer: LayerFacts, spectra: Sequence[Spectrum]) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    shown = [mark.rank for spectrum in spectra for mark in spectrum.marks if mark.kind == "chosen"]
    hidden = [rank for rank in layer.ranks if rank not in shown]
    if spectra and hidden:
        text = "no spectrum of it: nothing had to compute one to choose it"
        facts.append((f"Rank {' and '.join(map(str, hidden))}", text))
    if layer.refit:
        facts.append(("Refit", "to the original's outputs, on the inputs it gets here"))
    if layer.moments not in ("", "patches") and layer.predicted is not None:
        facts.append(("Input moments", f"{printable(layer.moments)}, a simpler form"))
    if layer.sensitivity is not None:
        text = f"{layer.sensitivity:.3g} (about one a stage is harmless; more makes training rough)"
        facts.append(("Sensitivity to noise", text))
    return facts


def percent(share: float) -> str:
    """Write a share in percent: with a digit behind the point below ten."""
    value = 100.0 * share
    return f"{value:.1f} %" if 0.0 < value < 9.95 else f"{value:.0f} %"
