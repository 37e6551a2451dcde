"""Compresses a language model of 21 million parameters, beside other ways at equal size.

    python -m tests.benchmarks.language

trains a model of 12 blocks of width 384 on Python source text (500 steps, the longest part; kept in
the user's cache, or where `--model` says), compresses it in every way at several shares of its
parameters, and writes docs/results/language.md: perplexity on modules that it was not trained on,
and tokens per second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.benchmarks.accuracy.data import Data
from tests.benchmarks.accuracy.training import perplexity
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import count, limited
from tests.benchmarks.language import network
from tests.benchmarks.language.ways import WAYS, Task, size
from tests.benchmarks.real.packages import default_folder
from torch import nn

from rankfold.adapters.timing import medians

_FILE = Path(__file__).parents[3] / "docs" / "results" / "language.md"
_MODEL = default_folder().parent / "language.pt"
_SHARES = (0.8, 0.6, 0.4)
_CALIBRATION = 256
_TURNS_FOR = 10.0  # seconds of turns of all ways at one share
_TIMED = 8  # sequences of a timed pass


@dataclass(frozen=True)
class Row:
    """One compressed model.

    Attributes:
        asked: the share of the parameters asked for.
        way: how it was compressed.
        share: that is left.
        perplexity: per byte, on the test text.
        speed: tokens per second, over those of the original.
        seconds: of CPU that compression took, without the pass for the moments.
    """

    asked: float
    way: str
    share: float
    perplexity: float
    speed: float
    seconds: float

    def line(self) -> str:
        """Return the row of a table."""
        return (
            f"| {self.asked:.0%} | {self.way} | {self.share:.1%} | {self.perplexity:.3f} | "
            f"{self.speed:.2f} | {self.seconds:.0f} |"
        )


def rows_of(task: Task, data: Data, shares: Sequence[float]) -> Iterator[Row]:
    """Compress a model in every way at every share; the models of a share are timed in turns."""
    for asked in shares:
        models: dict[str, nn.Module] = {}
        seconds: dict[str, float] = {}
        for way, compress in WAYS.items():
            began = time.process_time()
            models[way] = compress(task, asked)
            seconds[way] = time.process_time() - began
        speeds = _speeds(task.model, models, data.test[0][:_TIMED])
        for way, small in models.items():
            share = size(small) / size(task.model)
            yield Row(asked, way, share, perplexity(small, data), speeds[way], seconds[way])


@torch.no_grad()
def _speeds(original: nn.Module, models: dict[str, nn.Module], x: torch.Tensor) -> dict[str, float]:
    passes = [lambda model=model: model(x) for model in (original, *models.values())]
    whole, *times = medians(passes, _TURNS_FOR)
    return {way: whole / each for way, each in zip(models, times, strict=True)}


def page(rows: Sequence[Row], original: float, machine: str) -> str:
    """Return the page."""
    lines = [
        "# A language model",
        "",
        "Written by",
        "",
        "```sh",
        "python -m tests.benchmarks.language",
        "```",
        "",
        f"{machine}.",
        "",
        f"A transformer of {network.DEPTH} blocks of width {network.WIDTH}, trained on half of the",
        "modules of Python's standard library and tested on the others, as bytes in windows of 64.",
        f"Perplexity per byte of the original: {original:.3f}. {_CALIBRATION} windows of the",
        "training text calibrate; nothing is fine-tuned. *left* is the share of all parameters.",
        "*rankfold, refitted* takes interpolative factors as well, as `Budget(params=)` does",
        "unless told; *plain SVD* is without them. *q, k, v as one* is of the same model with one",
        "layer for the three, so that they share their first factor. *KFAC-SVD* weighs by the",
        "moments of inputs and of gradients, at one ratio for all layers but the head. BALF and",
        "SVD-LLM are re-implementations (`tests/benchmarks/real/peers.py`). *speed* is tokens per",
        "second over those of the original, medians of passes of 8 windows in turns. Seconds are",
        "CPU time, without the pass for the moments.",
        "",
        "| asked | way | left | perplexity | speed | seconds |",
        "|---:|---|---:|---:|---:|---:|",
        *(row.line() for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.language")
    parser.add_argument("--model", type=Path, default=_MODEL, help="where the model is kept")
    parser.add_argument("--shares", type=float, nargs="+", default=_SHARES)
    parser.add_argument("-o", "--output", type=Path, default=_FILE)
    options = parser.parse_args()
    with limited(count()):
        model, data = network.trained(options.model), network.text()
        original = perplexity(model, data)
        print(f"original: perplexity {original:.3f}, {size(model)} parameters", flush=True)
        task = Task(model, data.calibration(_CALIBRATION, seed=0))
        rows = []
        for row in rows_of(task, data, options.shares):
            rows.append(row)
            print(row.line(), flush=True)
    options.output.write_text(page(rows, original, statement()))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
