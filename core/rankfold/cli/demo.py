"""`rankfold demo`: train, compress, fine-tune, and show what happened.

The data are scikit-learn's 1797 handwritten digits, 8×8 pixels. Every figure shown is measured in
the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from rankfold.console import count, literal, wide_console
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.pipeline.api import compress
from rankfold.pipeline.result import Compressed
from rankfold.plan.plan import Plan
from rankfold.plugins.registry import registry, resolve
from rankfold.policies.vbmf import VBMF
from rankfold.progress import progress

RECIPES = {"SVD + Tucker-2": ("svd", "tucker2"), "SVD + CP": ("svd", "cp")}
STAGES = ("before", "compressed", "fine-tuned")
PICTURE = "demo.png"
# Fine-tuning goes at a lower rate, since the weights are near a good place already.
_TRAIN_RATE, _TUNE_RATE = 3e-3, 1e-3
_TEST_SHARE = 0.25
_WHY_NOT_AS_FAST = (
    "Time falls less than MACs: layers become more and thinner, and what lies between them stays. "
    "rankfold.Budget(latency=0.5) chooses ranks by measured time."
)


class DemoNetwork(Protocol):
    """A framework's network for the demo; named by `rankfold.plugins.Demo`.

    Attributes:
        head: path of the last layer. It is left alone: it is tiny, and its rank would bound the
            number of digits that can be told apart.
    """

    head: str

    def network(self) -> Any:
        """Return an untrained network."""

    def train(
        self,
        model: Any,
        images: Array,
        labels: Array,
        *,
        epochs: int,
        learning_rate: float,
        advance: Callable[[], None],
    ) -> None:
        """Train in place."""

    def accuracy(self, model: Any, images: Array, labels: Array) -> float:
        """Return the share of images classified right."""

    def inputs(self, images: Array) -> Any:
        """Example inputs of one forward pass."""

    def latencies(self, models: list[Any], images: Array) -> list[float]:
        """Median seconds of one forward pass of each model."""


@dataclass(frozen=True)
class Row:
    """One network of the table.

    Attributes:
        name: what was done to it.
        accuracies: test accuracy before compression, after it, and after fine-tuning; of the
            original only the first.
        params: parameters.
        macs: multiply-accumulates of its layers for one image.
        seconds: median time of one forward pass over the test images.
    """

    name: str
    accuracies: tuple[float, ...]
    params: int
    macs: int
    seconds: float


def run(output: Path, backend: str, epochs: int, seed: int) -> None:
    """Run the demo and writes its picture.

    Raises:
        RankfoldError: the backend is unknown, a package is missing, or the folder is not writable.
    """
    console = wide_console()
    network, (train_x, train_y, test_x, test_y) = _prepare(output, backend, seed)
    console.print(
        f"{len(train_y)} digits to train on, {len(test_y)} to test on; rankfold in {backend}"
    )
    started = time.perf_counter()
    model = network.network()
    _train(network, model, train_x, train_y, epochs, _TRAIN_RATE, "training")
    original = network.accuracy(model, test_x, test_y)
    console.print(
        f"trained for {epochs} epochs in {time.perf_counter() - started:.0f} s: "
        f"accuracy {original:.2%}\n"
    )
    smaller: dict[str, Compressed] = {}
    untuned: dict[str, float] = {}
    for name, methods in RECIPES.items():
        small = compress(
            model,
            VBMF(),
            inputs=network.inputs(test_x),
            methods=methods,
            exclude=network.head,
            seed=seed,
        )
        smaller[name] = small
        untuned[name] = network.accuracy(small.model, test_x, test_y)
        console.print(f"{name} at EVBMF ranks")
        console.print(small.report(), highlight=False, markup=False)
        tune = max(1, epochs // 3)
        _train(network, small.model, train_x, train_y, tune, _TUNE_RATE, f"fine-tuning {name}")
        console.print(f"fine-tuned for {tune} epochs\n")
    # All in one go, in turns, so that the speed-ups hold whatever else the machine is doing.
    seconds = network.latencies([model, *(s.model for s in smaller.values())], test_x)
    plan = next(iter(smaller.values())).plan
    rows = [Row("original", (original,), *_size(plan, 0), seconds[0])]
    for (name, small), measured in zip(smaller.items(), seconds[1:], strict=True):
        accuracies = (
            original,
            untuned[name],
            network.accuracy(small.model, test_x, test_y),
        )
        rows.append(Row(name, accuracies, *_size(small.plan, 1), measured))
    console.print(_table(rows, len(test_y)))
    if any(row.seconds * rows[0].macs > rows[0].seconds * row.macs for row in rows[1:]):
        console.print(_WHY_NOT_AS_FAST)
    picture = output / PICTURE
    _draw(rows, picture)
    took = time.perf_counter() - started
    console.print(literal(f"{took:.0f} s in all; picture: {picture}"), soft_wrap=True)


def _prepare(
    output: Path, backend: str, seed: int
) -> tuple[DemoNetwork, tuple[Array, Array, Array, Array]]:
    demos = {spec.demo.name: spec.demo for spec in registry().adapters.values() if spec.demo}
    if backend not in demos:
        raise RankfoldError(f"backend {backend!r} is unknown; use one of {', '.join(demos)}")
    try:
        import matplotlib as _  # noqa: F401 - found missing before the training, not after
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        network: DemoNetwork = resolve(demos[backend].target)(seed)
    except ImportError as error:
        raise RankfoldError(
            f"the demo needs {error.name or error}: {demos[backend].install}"
        ) from error
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RankfoldError(f"cannot write to {str(output)!r}: {error}") from None
    if not os.access(output, os.W_OK):
        raise RankfoldError(f"cannot write to {str(output)!r}: name another folder with -o")
    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype(np.float32)
    # The same split whatever the seed, so that accuracies of several runs compare.
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=_TEST_SHARE, stratify=digits.target, random_state=0
    )
    return network, (train_x, train_y, test_x, test_y)


def _train(
    network: DemoNetwork,
    model: Any,
    images: Array,
    labels: Array,
    epochs: int,
    rate: float,
    what: str,
) -> None:
    with progress(what, epochs) as advance:
        advance("")
        network.train(
            model,
            images,
            labels,
            epochs=epochs,
            learning_rate=rate,
            advance=lambda: advance(""),
        )


def _size(plan: Plan, which: int) -> tuple[int, int]:
    assert plan.macs is not None
    return plan.model_params[which], plan.macs[which]


def _table(rows: list[Row], tested: int) -> Table:
    table = Table(title=f"Accuracy and latency on {tested} test images", title_justify="left")
    table.add_column("network")
    for column in (
        *STAGES,
        "params",
        "MACs",
        "latency (ms)",
        "speed-up",
    ):
        table.add_column(column, justify="right")
    first = rows[0]
    for row in rows:
        table.add_row(
            row.name,
            *(f"{accuracy:.2%}" for accuracy in row.accuracies),
            *("–" for _ in STAGES[len(row.accuracies) :]),
            f"{count(row.params)} ({row.params / first.params:.1%})",
            f"{count(row.macs)} ({row.macs / first.macs:.1%})",
            f"{row.seconds * 1e3:.2f}",
            f"{first.seconds / row.seconds:.2f}×",
        )
    return table


def _draw(rows: list[Row], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = np.arange(len(rows))
    for stage, label in enumerate(STAGES):
        shown = [
            # The bars of a network stand about its name, however many it has.
            (position + 0.27 * (stage - (len(row.accuracies) - 1) / 2), 100 * row.accuracies[stage])
            for position, row in enumerate(rows)
            if stage < len(row.accuracies)
        ]
        bars = left.bar(*zip(*shown, strict=True), 0.27, label=label)
        left.bar_label(bars, fmt="%.1f", fontsize=8)
    left.set_ylabel("test accuracy (%)")
    left.set_ylim(0, 105)
    left.set_xticks(positions, [row.name for row in rows])
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    first = rows[0]
    for offset, label, shares in (
        (-0.27, "parameters", [row.params / first.params for row in rows]),
        (0.0, "MACs", [row.macs / first.macs for row in rows]),
        (0.27, "latency", [row.seconds / first.seconds for row in rows]),
    ):
        bars = right.bar(positions + offset, [100 * s for s in shares], 0.27, label=label)
        right.bar_label(bars, fmt="%.0f", fontsize=8)
    right.set_ylabel("share of the original (%)")
    right.set_xticks(positions, [row.name for row in rows])
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise RankfoldError(f"cannot write {str(file)!r}: {error}") from None
