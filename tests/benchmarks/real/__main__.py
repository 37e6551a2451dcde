"""Compresses networks that were trained for real tasks, beside other ways at equal cost.

    python -m tests.benchmarks.real

installs packages that ship such networks into a folder of its own, in the user's cache unless
`--packages` names another, compresses each network in every way at several shares of its
multiply-accumulates, tests it on data of another kind than the calibration data, and writes
docs/results/real.md. On one thread: hours for all; `--only mnist --seeds 1` takes a minute.
`--rows` keeps what was measured in a file, so that the networks can be measured one by one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from tests.benchmarks.real import peers
from tests.benchmarks.real.packages import default_folder, install
from tests.benchmarks.real.results import ORIGINAL, Row, add, page, read
from tests.benchmarks.real.subjects import SUBJECTS, Data
from tests.benchmarks.real.ways import BLIND, EVBMF, WAYS, Task
from torch import nn

from rankfold import RankfoldError
from rankfold.adapters.timing import medians

_FILE = Path(__file__).parents[3] / "docs" / "results" / "real.md"
_TURNS_FOR = 4.0  # seconds of turns of all ways at one share


@torch.no_grad()
def outputs(model: nn.Module, inputs: torch.Tensor, batch: int) -> torch.Tensor:
    """Of all inputs."""
    return torch.cat([model(part) for part in inputs.split(batch)])


def rows_of(
    key: str, folder: Path, seeds: int, shares: Sequence[float], ways: Sequence[str]
) -> Iterator[Row]:
    """Compresses a network in every way, at every share, with every draw of calibration data."""
    subject = SUBJECTS[key]
    install(folder, subject.packages)
    model, data = subject.network(folder), subject.data(folder)
    original = outputs(model, data.test, subject.batch)
    scores = dict(subject.scores(original, original, data.labels))
    yield Row(key, 0, ORIGINAL, "1", 1.0, scores, latency=1.0)
    for seed in range(seeds):
        batches = data.calibration(subject.calibration, seed).split(subject.batch)
        task = Task(model, data.test[:1], batches)
        for asked in (*map(str, shares), "EVBMF"):
            chosen = [
                way
                for way in ways
                if (way == EVBMF) == (asked == "EVBMF") and not (seed and way in BLIND)
            ]
            yield from _measured(key, seed, task, data, original, asked, chosen)


def _measured(
    key: str,
    seed: int,
    task: Task,
    data: Data,
    original: torch.Tensor,
    asked: str,
    ways: Sequence[str],
) -> Iterator[Row]:
    """The rows of some ways at one share; the first draw's networks are timed as well."""
    subject = SUBJECTS[key]
    models: dict[str, nn.Module] = {}
    seconds: dict[str, float] = {}
    for way in ways:
        began, task.spent = time.process_time(), 0.0
        try:
            models[way] = WAYS[way](task, 1.0 if asked == "EVBMF" else float(asked))
        except (peers.InfeasibleError, RankfoldError):
            yield Row(key, seed, way, asked, None, {})
        seconds[way] = time.process_time() - began + task.spent
    whole = peers.multiply_accumulates(task.model, task.x)
    latencies = dict.fromkeys(models)
    if seed == 0 and models:
        latencies = _latencies(task, models)
    for way, small in models.items():
        share = peers.multiply_accumulates(small, task.x) / whole
        scored = subject.scores(outputs(small, data.test, subject.batch), original, data.labels)
        yield Row(key, seed, way, asked, share, dict(scored), seconds[way], latencies[way])


@torch.no_grad()
def _latencies(task: Task, models: dict[str, nn.Module]) -> dict[str, float | None]:
    """The time of a pass of each model over that of the original."""
    passes = [lambda model=model: model(task.x) for model in (task.model, *models.values())]
    whole, *times = medians(passes, _TURNS_FOR)
    return {way: seconds / whole for way, seconds in zip(models, times, strict=True)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.real")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration data")
    parser.add_argument("--only", choices=tuple(SUBJECTS), nargs="+", default=tuple(SUBJECTS))
    parser.add_argument("--shares", type=float, nargs="+", help="of the MACs")
    parser.add_argument("--ways", choices=tuple(WAYS), nargs="+", default=tuple(WAYS))
    parser.add_argument("--packages", type=Path, default=default_folder())
    parser.add_argument("--rows", type=Path, help="a file of rows: added to, and all written")
    parser.add_argument("-o", "--output", type=Path, default=_FILE)
    options = parser.parse_args()
    rows = read(options.rows) if options.rows else []
    with limited(1):
        for key in options.only:
            shares = options.shares or SUBJECTS[key].shares
            for row in rows_of(key, options.packages, options.seeds, shares, options.ways):
                rows.append(row)
                print(row.line(), flush=True)
                if options.rows:
                    add(options.rows, [row])
    rows = read(options.rows) if options.rows else rows
    options.output.write_text(page(rows, statement(1)))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
