"""What was measured, as Markdown; tables that were not measured anew are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.decomposition.comparison import Outcome, Row
from tests.benchmarks.decomposition.sections import SECTIONS, Section
from tests.benchmarks.decomposition.turns import LONG

COMMAND = "python -m pytest tests/benchmarks/decomposition --benchmark-enable -s"
_HEADING = "## "


def write(file: Path, rows: Sequence[Row], machine: str) -> None:
    """Writes a file, or replaces those of its tables of which there are rows.

    Tables under another head (machine, threads, versions) are dropped.
    """
    head = _head(machine)
    kept = _tables(file.read_text(), head) if file.exists() else {}
    parts = [head]
    for section in SECTIONS:
        own = [row for row in rows if row.section == section]
        if own:
            parts.append("\n".join(_table(section, own)) + "\n")
        elif section.title in kept:
            parts.append(kept[section.title])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts))


def line(row: Row) -> str:
    """A row for the terminal."""
    sides = (
        f"{one.name} {_milliseconds(one.seconds)} ms, {one.figure:.4g}"
        for one in (*row.own, *row.peers)
    )
    return f"{row.section.title}, {row.layer} at {row.ranks}: " + "; ".join(sides)


def _head(machine: str) -> str:
    lines = [
        "# Speed of the decompositions",
        "",
        "Written by",
        "",
        "```sh",
        COMMAND,
        "```",
        "",
        f"{machine}.",
        "",
        "Ours and the peers are measured in turns in one process, after a call that does not",
        "count. Times are medians of an odd number of turns, nine for what is quick and three for",
        f"what takes seconds; a function that takes over {LONG:.0f} seconds is called once and",
        "marked so. Ratio: the peer's time over ours. Weights are synthetic, float32, with the",
        "square root of the index as the decay of both channel modes and a tenth of noise. Errors",
        "are ‖W − Ŵ‖ / ‖W‖ of what the factors stand for, multiplied out in float64.",
        "",
    ]
    return "\n".join(lines)


def _tables(text: str, head: str) -> dict[str, str]:
    """The tables of a file by their headings; none if the head is another one."""
    first, *parts = text.split(f"\n{_HEADING}")
    if first != head:
        return {}
    return {part.partition("\n")[0]: f"{_HEADING}{part.rstrip()}\n" for part in parts}


def _table(section: Section, rows: Sequence[Row]) -> Iterator[str]:
    names = [one.name for one in rows[0].own]
    first = [f"{name} (ms)" for name in names]
    ratios = ["ratio", *(f"ratio, {name}" for name in names[1:])]
    figures = [f"{section.figure}, {name}" for name in (*names, "peer")]
    heads = ["layer", "rank", "peer", *first, "peer (ms)", *ratios, *figures]
    numbers = len(heads) - 3
    yield from (f"{_HEADING}{section.title}", "")
    yield f"{section.note} Our {section.figure} may be higher by at most {section.tolerance:.1%}."
    yield from ("", _cells(heads), _cells(["---"] * 3 + ["---:"] * numbers))
    for row in rows:
        for peer in row.peers:
            yield _cells(
                [
                    row.layer,
                    row.ranks,
                    peer.name,
                    *map(_time, (*row.own, peer)),
                    *(_ratio(peer.seconds / one.seconds) for one in row.own),
                    *(f"{one.figure:.4g}" for one in (*row.own, peer)),
                ]
            )
    if section.totals:
        yield from _totals(rows, len(heads))


def _totals(rows: Sequence[Row], columns: int) -> Iterator[str]:
    """A line for each peer: the sums over all layers, each as often as it occurs."""
    layers = sum(row.count for row in rows)
    for place, peer in enumerate(rows[0].peers):
        own = [
            sum(row.count * row.own[form].seconds for row in rows)
            for form in range(len(rows[0].own))
        ]
        others = sum(row.count * row.peers[place].seconds for row in rows)
        cells = [f"sum of {layers}", "", peer.name]
        cells += [_milliseconds(seconds) for seconds in (*own, others)]
        cells += [_ratio(others / seconds) for seconds in own]
        yield _cells(cells + [""] * (columns - len(cells)))


def _time(outcome: Outcome) -> str:
    return _milliseconds(outcome.seconds) + (" (once)" if outcome.turns == 1 else "")


def _milliseconds(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
