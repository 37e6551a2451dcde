"""What compression in several steps gains over one step, at equal training: `rf.Gradual`.

    python -m tests.benchmarks.gradual

trains a network of four convolutions with BatchNorm on scikit-learn's digits, compresses it to a
share of its multiply-accumulates at once or in steps, trains it on for the same number of
steps in all, and writes docs/results/gradual.md. Some five minutes of one thread for three seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tests.benchmarks.accuracy.data import Data, digits
from tests.benchmarks.accuracy.training import accuracy, cross_entropy, train
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from torch import nn

import rankfold as rf

_FILE = Path(__file__).parents[2] / "docs" / "results" / "gradual.md"
_SHARES = (0.1, 0.04)
_COMPRESSIONS = (1, 2, 4)
_STEPS, _RATE = 160, 2e-3
_EPOCHS = 15  # of the original
_SIZE = 64


@dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        seed: of its training and of the batches.
        share: of the multiply-accumulates that is left; 1 for the original.
        data: whether it was compressed with calibration data.
        compressions: in how many steps; 0 for the original.
        error: of the test images that are classified wrong, in per cent.
    """

    seed: int
    share: float
    data: bool
    compressions: int
    error: float


def network() -> nn.Module:
    """Four convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    for into, out in ((1, 48), (48, 96), (96, 96), (96, 96)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    layers.insert(6, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def schedule(share: float, compressions: int, steps: int) -> dict[int, rf.Budget]:
    """Shares that fall by a constant factor, at equal distances in the first half of training."""
    return {
        index * steps // (2 * compressions): rf.Budget(macs=share ** ((index + 1) / compressions))
        for index in range(compressions)
    }


def tuned(
    model: nn.Module, data: Data, share: float, compressions: int, steps: int, seed: int, **options
) -> nn.Module:
    """Train a copy with labels while it is compressed."""
    model = copy.deepcopy(model).train()
    x, y = data.train
    gradual = rf.Gradual(schedule(share, compressions, steps), inputs=x[:1], **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.02)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for number in range(steps):
        gradual.step(model, number, [optimizer])
        chosen = torch.randint(len(x), (_SIZE,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        rates.step()
    return model.eval()


def rows_of(seed: int, steps: int) -> Iterator[Row]:
    """Train the original and compress it in every way."""
    data = digits()
    torch.manual_seed(seed)
    model = network()
    train(model, data, epochs=_EPOCHS, rate=_RATE, seed=seed)
    yield Row(seed, 1.0, False, 0, 100.0 - accuracy(model, data))
    batches = data.calibration(256, seed)
    for share in _SHARES:
        for informed in (False, True):
            options = {"calibration": batches} if informed else {}
            for compressions in _COMPRESSIONS:
                small = tuned(model, data, share, compressions, steps, seed, **options)
                yield Row(seed, share, informed, compressions, 100.0 - accuracy(small, data))


def page(rows: Sequence[Row], steps: int, machine: str) -> str:
    """Write a table: ways of compression down, numbers of steps across."""
    seeds = len({row.seed for row in rows})
    lines = [
        "# Compression in steps",
        "",
        "Written by",
        "",
        "```sh",
        "python -m tests.benchmarks.gradual",
        "```",
        "",
        f"{machine}.",
        "",
        "Four convolutions with BatchNorm on scikit-learn's digits, compressed to a share of their",
        f"multiply-accumulates while they are trained for {steps} steps with labels, by",
        "[`rf.Gradual`](../how-to/after.md#compress-while-you-train): in 1, 2 or 4 compressions at",
        "equal distances in the first half of training, each by the same factor. Test error in per",
        f"cent, mean and standard deviation over {seeds} seeds; one of the 449 test images is",
        f"0.22, and the original has {_spread(rows, 1.0, False, 0)}.",
        "",
        "| MACs left | calibration data | " + " | ".join(map(str, _COMPRESSIONS)) + " |",
        "|---:|---|" + "---:|" * len(_COMPRESSIONS),
    ]
    for share in _SHARES:
        for informed in (False, True):
            cells = [_spread(rows, share, informed, count) for count in _COMPRESSIONS]
            word = "256 examples" if informed else "none"
            lines.append(f"| {share:.0%} | {word} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(rows: Sequence[Row], share: float, informed: bool, compressions: int) -> str:
    key = share, informed, compressions
    errors = [row.error for row in rows if (row.share, row.data, row.compressions) == key]
    return f"{np.mean(errors):.2f} ± {np.std(errors):.2f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gradual")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("-o", "--output", type=Path, default=_FILE)
    options = parser.parse_args()
    rows: list[Row] = []
    with limited(1):
        for seed in options.seeds:
            for row in rows_of(seed, options.steps):
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True)
    options.output.write_text(page(rows, options.steps, statement(1)))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
