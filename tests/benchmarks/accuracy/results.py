"""What was measured, as a table in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.benchmarks.accuracy.subjects import SUBJECTS
from tests.benchmarks.accuracy.ways import EVBMF, WAYS

_MARKS = dict(zip((EVBMF, *WAYS), "xsvo*", strict=True))


@dataclass(frozen=True)
class Row:
    """One compressed model.

    Attributes:
        subject: key of `SUBJECTS`.
        seed: of the training and of the calibration data.
        way: how it was compressed.
        asked: the share of the MACs asked for, "EVBMF" for the one that EVBMF leaves.
        share: the share of the MACs that is left.
        original: score of the original.
        before: score before fine-tuning.
        after: score after it.
        seconds: that compression took.
    """

    subject: str
    seed: int
    way: str
    asked: str
    share: float
    original: float
    before: float
    after: float
    seconds: float


def table(rows: Sequence[Row], command: str, machine: str) -> str:
    """A section for each subject: ways down, scores before and after fine-tuning across."""
    lines = [
        "# Accuracy against multiply-accumulates",
        "",
        "Written by",
        "",
        "```sh",
        command,
        "```",
        "",
        f"on {machine}. Each figure is the mean over the seeds, with the standard deviation; every",
        "seed trains a network anew and draws its own calibration examples. The MACs are those of",
        "all layers. Nothing is fine-tuned in the columns *before*.",
        "",
        "![accuracy against MACs](accuracy.png)",
    ]
    for key, subject in SUBJECTS.items():
        own = [row for row in rows if row.subject == key]
        if not own:
            continue
        first = _spread([row.original for row in own if row.way == EVBMF])
        lines += ["", f"## {subject.name}", ""]
        lines += [f"{subject.unit} of the original: {first}; {subject.calibration} calibration", ""]
        lines[-2] += f" examples; fine-tuning: {subject.tuning} epochs."
        lines += [
            "| MACs kept | way | before | after fine-tuning | seconds |",
            "|---:|---|---:|---:|---:|",
        ]
        for asked in dict.fromkeys(row.asked for row in own):
            for way in (EVBMF, *WAYS):
                found = [row for row in own if (row.way, row.asked) == (way, asked)]
                if found:
                    lines.append(_line(way, found))
    return "\n".join(lines) + "\n"


def _line(way: str, rows: Sequence[Row]) -> str:
    share = np.mean([row.share for row in rows])
    before, after = _spread([r.before for r in rows]), _spread([r.after for r in rows])
    seconds = np.mean([row.seconds for row in rows])
    return f"| {share:.1%} | {way} | {before} | {after} | {seconds:.1f} |"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values):.2f}"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Scores against the share of MACs, before (above) and after fine-tuning (below)."""
    from matplotlib.figure import Figure

    keys = [key for key in SUBJECTS if any(row.subject == key for row in rows)]
    figure = Figure(figsize=(4.6 * len(keys), 7), layout="constrained")
    axes = figure.subplots(2, len(keys), squeeze=False)
    for column, key in enumerate(keys):
        own = [row for row in rows if row.subject == key]
        for place, (stage, what) in enumerate((("before", "no"), ("after", "after"))):
            axis = axes[place, column]
            for way, mark in _MARKS.items():
                points = _points(own, way, stage)
                axis.plot(*points, marker=mark, label=way, linestyle="" if way == EVBMF else "-")
            axis.axhline(np.mean([row.original for row in own]), color="grey", linestyle=":")
            axis.set_xscale("log")
            if SUBJECTS[key].better < 0:
                axis.set_yscale("log")
            axis.set_title(f"{SUBJECTS[key].name}\n{what} fine-tuning", fontsize=10)
            axis.set_xlabel("share of the MACs kept")
            axis.set_ylabel(SUBJECTS[key].unit)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def _points(rows: Sequence[Row], way: str, stage: str) -> tuple[list[float], list[float]]:
    """Mean shares and mean scores of a way, in the order of the shares."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.way == way:
            found.setdefault(row.asked, []).append(row)
    points = sorted(
        (float(np.mean([r.share for r in own])), float(np.mean([getattr(r, stage) for r in own])))
        for own in found.values()
    )
    return [x for x, _ in points], [y for _, y in points]
