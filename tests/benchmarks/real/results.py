"""What was measured, as lines of JSON and as a page in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tests.benchmarks.real.subjects import SUBJECTS
from tests.benchmarks.real.ways import WAYS

ORIGINAL = "original"


@dataclass(frozen=True)
class Row:
    """One compressed network, or the original.

    Attributes:
        subject: key of `SUBJECTS`.
        seed: of the calibration data.
        way: how it was compressed.
        asked: the share of the multiply-accumulates asked for, "EVBMF" where none is.
        share: the share that is left; None where there is no network within the share.
        scores: by name.
        seconds: of CPU that compression took.
        latency: the time of a pass, as a share of the original's; None where it was not measured.
    """

    subject: str
    seed: int
    way: str
    asked: str
    share: float | None
    scores: dict[str, float]
    seconds: float = 0.0
    latency: float | None = None

    def line(self) -> str:
        """The row for people."""
        left = "impossible" if self.share is None else f"{self.share:6.1%}"
        scores = ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items())
        return f"{self.subject} {self.asked} seed {self.seed} {self.way}: {left} {scores}"


def read(file: Path) -> list[Row]:
    """The rows of a file, of each network and way the last."""
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return list({(r.subject, r.seed, r.way, r.asked): r for r in rows}.values())


def add(file: Path, rows: Sequence[Row]) -> None:
    """Writes rows behind those of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def page(rows: Sequence[Row], machine: str) -> str:
    """A section for each network: ways down within each share."""
    lines = [
        "# Networks that were trained for real tasks",
        "",
        "Written by",
        "",
        "```sh",
        "python -m tests.benchmarks.real",
        "```",
        "",
        f"{machine}.",
        "",
        "The networks are those that packages on PyPI ship. Nothing is fine-tuned, no label is",
        "used, and the test data is of another kind than the calibration data. All ways leave",
        "the same share of the multiply-accumulates of the whole network, or none where the",
        "layers that no way replaces cost more already; *uniform ratio* is Tucker-2 and SVD at",
        "the same share of the channels of every layer but the last, *EVBMF ranks* are those of",
        "Tucker-2 and SVD, whatever they leave. BALF, SVD-LLM and ASVD are re-implementations",
        "(`tests/benchmarks/real/peers.py`). Seconds are CPU time of the compression, with the",
        "pass over the calibration data; *pass* is the median time of a forward pass of one",
        "example over that of the original, measured in turns. Means over draws of the",
        "calibration data, with the standard deviation where there are several.",
    ]
    for key, subject in SUBJECTS.items():
        chosen = [row for row in rows if row.subject == key]
        original = next((row for row in chosen if row.way == ORIGINAL), None)
        if original is None:
            continue
        names = list(original.scores)
        draws = len({row.seed for row in chosen})
        whole = ", ".join(f"{name}: {value:.4g}" for name, value in original.scores.items())
        lines += [
            "",
            f"## {subject.name}",
            "",
            f"{subject.calibration} calibration examples, {draws} draw{'s'[: draws > 1]}: "
            f"{subject.about}. Original: {whole}.",
            "",
            f"| asked | way | left | {' | '.join(names)} | seconds | pass |",
            f"|---:|---|---:|{'---:|' * len(names)}---:|---:|",
        ]
        compressed = [row for row in chosen if row.way != ORIGINAL]
        for asked in sorted({row.asked for row in compressed}, reverse=True, key=_order):
            for way in WAYS:
                alike = [row for row in compressed if (row.way, row.asked) == (way, asked)]
                if alike:
                    lines.append(_line(alike, names))
    return "\n".join(lines) + "\n"


def _order(asked: str) -> float:
    """The largest share first, EVBMF last."""
    return 0.0 if asked == "EVBMF" else float(asked)


def _line(rows: Sequence[Row], names: Sequence[str]) -> str:
    """One way at one share, over the draws."""
    asked = rows[0].asked if rows[0].asked == "EVBMF" else f"{float(rows[0].asked):.0%}"
    done = [row for row in rows if row.share is not None]
    if not done:
        return f"| {asked} | {rows[0].way} | impossible |{' |' * len(names)} | |"
    share = np.mean([row.share for row in done if row.share is not None])
    scores = " | ".join(_spread(name, [row.scores[name] for row in done]) for name in names)
    seconds = np.mean([row.seconds for row in done])
    times = [row.latency for row in done if row.latency is not None]
    latency = f"{np.mean(times):.2f}" if times else ""
    return f"| {asked} | {rows[0].way} | {share:.1%} | {scores} | {seconds:.1f} | {latency} |"


def _spread(name: str, values: Sequence[float]) -> str:
    digits = 1 if "%" in name else 3
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values):.{digits}f}"
