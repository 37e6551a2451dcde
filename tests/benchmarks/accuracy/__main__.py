"""Accuracy or perplexity against multiply-accumulates, for five ways of compressing.

    python -m tests.benchmarks.accuracy

trains three networks with three seeds each, compresses them in every way at several shares of their
MACs, fine-tunes, and writes docs/results/accuracy.md and accuracy.png. About an hour on two cores;
`--seeds 1 --only resnet` takes a few minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tests.benchmarks.accuracy.data import Data
from tests.benchmarks.accuracy.results import Row, draw, table
from tests.benchmarks.accuracy.subjects import SUBJECTS, Subject
from tests.benchmarks.accuracy.training import train
from tests.benchmarks.accuracy.ways import EVBMF, WAYS, evbmf, share_of

from rankfold.pipeline.result import Compressed

_FOLDER = Path(__file__).parents[3] / "docs" / "results"
_TUNING_RATE = 0.3


def rows_of(key: str, data: Data, seed: int) -> Iterator[Row]:
    """Trains a subject with a seed, then compresses and fine-tunes it in every way."""
    subject = SUBJECTS[key]
    torch.manual_seed(seed)
    model = subject.network()
    train(model, data, epochs=subject.epochs, rate=subject.rate, seed=seed)
    original = subject.score(model, data)
    x = data.test[0][:1]
    batches = data.calibration(subject.calibration, seed)

    def judged(small: Compressed, way: str, asked: str, began: float) -> Row:
        seconds = time.perf_counter() - began
        before = subject.score(small.model, data)
        tune(small, subject, data, seed)
        after = subject.score(small.model, data)
        return Row(key, seed, way, asked, share_of(small), original, before, after, seconds)

    began = time.perf_counter()
    first = judged(evbmf(model, x), EVBMF, "EVBMF", began)
    yield first
    for asked in (first.share, *subject.shares):
        for way, compress in WAYS.items():
            began = time.perf_counter()
            small = compress(model, x, asked, batches, subject)
            name = "EVBMF" if asked == first.share else f"{asked:g}"
            yield judged(small, way, name, began)


def tune(small: Compressed, subject: Subject, data: Data, seed: int) -> None:
    """Fine-tunes in place."""
    rate = _TUNING_RATE * subject.rate
    train(small.model, data, epochs=subject.tuning, rate=rate, seed=seed)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="how many; 3 unless told")
    parser.add_argument("--only", choices=tuple(SUBJECTS), nargs="+", default=tuple(SUBJECTS))
    parser.add_argument("-o", "--output", type=Path, default=_FOLDER)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for key in options.only:
        data = SUBJECTS[key].data()
        for seed in range(options.seeds):
            for row in rows_of(key, data, seed):
                rows.append(row)
                print(
                    f"{key} seed {seed} {row.way:>22} {row.share:6.1%}: {row.original:.2f} -> "
                    f"{row.before:.2f}, tuned {row.after:.2f} ({row.seconds:.1f} s)",
                    flush=True,
                )
    machine = f"{os.cpu_count()} cores ({platform.machine()}), PyTorch {torch.__version__}"
    command = "python -m tests.benchmarks.accuracy"
    (options.output / "accuracy.md").write_text(table(rows, command, machine))
    draw(rows, options.output / "accuracy.png")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
