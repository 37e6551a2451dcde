"""What interpolative factors gain: parameters, losses at equal parameters, and the time they cost.

    python -m tests.benchmarks.interpolative

compresses classifiers of `tests.benchmarks.real`, CREPE tiny, and the transformer of
`tests.benchmarks.accuracy` to shares of their parameters with and without interpolative methods,
measures the CPU time of chains of square linear layers and of convolutions at half their
parameters, in turns, on one thread, and writes docs/results/interpolative.md. Some ten minutes of
one thread; `--only mnist` takes one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from tests.benchmarks.accuracy.subjects import SUBJECTS as TRAINED
from tests.benchmarks.accuracy.training import train
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from tests.benchmarks.real.packages import default_folder, install
from tests.benchmarks.real.subjects import SUBJECTS
from torch import nn

import rankfold as rf

_FILE = Path(__file__).parents[2] / "docs" / "results" / "interpolative.md"
_NETWORKS = ("mnist", "usps", "svhn", "crepe-tiny")
_TRAINED = {"transformer": 0.5}  # epochs: enough to have structure to lose
_SHARES = (0.8, 0.5, 0.3)
_PLAIN = ("svd", "tucker2", "spatial_svd", "channel_svd")
_INTERPOLATIVE = {"svd": "svd_id", "tucker2": "tucker2_id", "channel_svd": "channel_svd_id"}
_WAYS = {"plain": _PLAIN, "interpolative": (*_PLAIN, *_INTERPOLATIVE.values())}
_ORDERS = (512, 1024, 2048)
_ROWS = (1, 16, 256)
_CHANNELS = (64, 128, 256)
_TURNS = 15
_SHORTEST = 5e-3


@dataclass(frozen=True)
class Row:
    """One compressed network.

    Attributes:
        share: of the parameters that was asked for.
        way: "plain" or "interpolative".
        data: whether it was calibrated.
        left: the share of the parameters that is left.
        same_ranks: the share that is left by interpolative stages at the ranks of the row.
        off: ‖y − ŷ‖ / ‖y‖ of the outputs on the test data.
        score: the main score of the network.
    """

    share: float
    way: str
    data: bool
    left: float
    same_ranks: float
    off: float
    score: float


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network with its data.

    Attributes:
        name: for the page.
        about: the data, in words.
        model: the network.
        batches: of calibration data.
        test: inputs to judge by.
        batch: how many of them run at once.
        score: of a model.
        loss: that calibration is for.
    """

    name: str
    about: str
    model: nn.Module
    batches: Sequence[torch.Tensor]
    test: torch.Tensor
    batch: int
    score: Callable[[nn.Module], float]
    loss: str = "outputs"


def real(key: str, folder: Path) -> Case:
    """Return a network of `tests.benchmarks.real`."""
    subject = SUBJECTS[key]
    install(folder, subject.packages)
    model, data = subject.network(folder), subject.data(folder)
    original = outputs(model, data.test, subject.batch)

    def score(small: nn.Module) -> float:
        actual = outputs(small, data.test, subject.batch)
        return next(iter(subject.scores(actual, original, data.labels).values()))

    batches = data.calibration(subject.calibration, 0).split(subject.batch)
    return Case(subject.name, subject.about, model, batches, data.test, subject.batch, score)


def trained(key: str, epochs: float) -> Case:
    """Train a network of `tests.benchmarks.accuracy`, and return it."""
    subject = TRAINED[key]
    torch.manual_seed(0)
    model, data = subject.network(), subject.data()
    train(model, data, epochs=epochs, rate=subject.rate, seed=0)
    return Case(
        f"{subject.name}, trained for {epochs:g} epochs",
        f"other examples than those of training; the score is {subject.unit}",
        model,
        data.calibration(subject.calibration, 0),
        data.test[0],
        256,
        lambda small: subject.score(small, data),
        subject.loss,
    )


@torch.no_grad()
def outputs(model: nn.Module, inputs: torch.Tensor, batch: int) -> torch.Tensor:
    """Of all inputs."""
    return torch.cat([model(part) for part in inputs.split(batch)])


def rows_of(case: Case) -> Iterator[Row]:
    """Yield a row for each share and way of compressing a network."""
    model, x = case.model, case.test[:1]
    original = outputs(model, case.test, case.batch)
    for share in _SHARES:
        for calibrated in (False, True):
            for way, methods in _WAYS.items():
                data = {"calibration": case.batches, "loss": case.loss} if calibrated else {}
                small = rf.compress(
                    model, rf.Budget(params=share), inputs=x, methods=methods, **data
                )
                before, after = small.plan.model_params
                actual = outputs(small.model, case.test, case.batch)
                off = float((actual - original).norm() / original.norm())
                same = _at_the_same_ranks(model, x, small.plan)
                score = case.score(small.model)
                yield Row(share, way, calibrated, after / before, same, off, score)


def _at_the_same_ranks(model: nn.Module, x: torch.Tensor, plan: rf.Plan) -> float:
    """Return the share of the parameters with interpolative stages wherever there can be some."""
    layers = tuple(
        msgspec.structs.replace(layer, method=_INTERPOLATIVE.get(layer.method, layer.method))
        for layer in plan.layers
    )
    before, after = rf.apply(
        model, msgspec.structs.replace(plan, layers=layers), inputs=x
    ).plan.model_params
    return after / before


def ratios(passes: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median CPU times of functions, in turns, over that of the first."""
    repeats = []
    for function in passes:
        function()
        began = time.process_time()
        function()
        repeats.append(max(1, round(_SHORTEST / max(time.process_time() - began, 1e-9))))
    samples: list[list[float]] = [[] for _ in passes]
    for _ in range(_TURNS):
        for function, often, times in zip(passes, repeats, samples, strict=True):
            began = time.process_time()
            for _ in range(often):
                function()
            times.append((time.process_time() - began) / often)
    medians = [statistics.median(times) for times in samples]
    return [median / medians[0] for median in medians]


def passes(case: Case) -> Iterator[str]:
    """Yield rows of the table of times of a network, compressed by its weights alone."""
    x = case.test[: case.batch]
    for share in _SHARES:
        models = [case.model]
        for methods in _WAYS.values():
            budget = rf.Budget(params=share)
            models.append(rf.compress(case.model, budget, inputs=x[:1], methods=methods).model)
        with torch.no_grad():
            _, plain, interpolative = ratios([lambda model=model: model(x) for model in models])
        yield f"| {case.name} | {share:.0%} | {plain:.2f} | {interpolative:.2f} |"


def timed(layer: nn.Module, x: torch.Tensor, method: str) -> list[float]:
    """Return times over that of the layer: the plain chain at half the parameters, then others.

    The second is the interpolative chain at the same rank, the third at half the parameters.
    """
    model = nn.Sequential(layer).eval()
    plan = rf.plan(model, rf.Budget(params=0.5), methods=method)
    same = msgspec.structs.replace(
        plan,
        layers=tuple(msgspec.structs.replace(p, method=f"{method}_id") for p in plan.layers),
    )
    models = [
        model,
        rf.apply(model, plan).model,
        rf.apply(model, same).model,
        rf.compress(model, rf.Budget(params=0.5), methods=f"{method}_id").model,
    ]
    with torch.no_grad():
        return ratios([lambda model=model: model(x) for model in models])[1:]


def times() -> Iterator[str]:
    """Yield rows of the table of times."""
    for order in _ORDERS:
        layer = nn.Linear(order, order)
        for rows in _ROWS:
            yield _line(
                f"Linear {order}, {rows} rows", timed(layer, torch.randn(rows, order), "svd")
            )
    for channels in _CHANNELS:
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        x = torch.randn(4, channels, 16, 16)
        for method in ("channel_svd", "tucker2"):
            name = f"Conv 3×3 {channels}, 4 × 16 × 16, {method}"
            yield _line(name, timed(conv, x, method))


def _line(name: str, values: Sequence[float]) -> str:
    plain, same, equal = values
    cells = (plain, same, equal, same / plain, equal / plain)
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in cells) + " |"


def page(
    sections: Sequence[tuple[Case, Sequence[Row]]], whole: Sequence[str], timings: Sequence[str]
) -> str:
    """Return the page of results."""
    lines = [_HEAD.format(machine=statement(1))]
    for case, rows in sections:
        original = f"The original scores {case.score(case.model):.2f}."
        lines += [f"## {case.name}", "", f"Test data: {case.about}. {original}", ""]
        lines += [
            "| asked | data | methods | left | same ranks | off | score |",
            "|---:|---|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row.share:.0%} | {'calibrated' if row.data else 'weights'} | {row.way} "
            f"| {row.left:.1%} | {row.same_ranks:.1%} | {row.off:.3g} | {row.score:.2f} |"
            for row in rows
        ]
        lines.append("")
    lines += [_TIMES, *timings, "", _PASSES, *whole, ""]
    return "\n".join(lines)


_HEAD = """# Interpolative factors

Written by

```sh
python -m tests.benchmarks.interpolative
```

{machine}.

*Plain* are the methods svd, tucker2, spatial_svd and channel_svd; *interpolative* are these with
svd_id, tucker2_id and channel_svd_id, which `Budget(params=)` takes by default. *Left* is the share
of the network's parameters, *same ranks* what is left where these ranks are made interpolative,
which computes the same. *Off* is the distance of the outputs from the original's on test data,
‖y − ŷ‖ / ‖y‖; the score, where none is named, is that of
[networks that were trained for real tasks](real.md), in per cent. Calibrated ones are refitted.
"""

_TIMES = """## Time

CPU time of a forward pass in PyTorch, one thread, medians of turns, over that of the layer: the
plain chain at half the parameters, the interpolative chain of the same rank, and the interpolative
chain at half the parameters, whose rank is higher. The last two columns are over the plain chain.

| layer | plain | interpolative, same rank | interpolative, half | same / plain | half / plain |
|---|---:|---:|---:|---:|---:|"""

_PASSES = """Of whole networks, compressed by their weights alone, over the original:

| network | asked | plain | interpolative |
|---|---:|---:|---:|"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.interpolative")
    parser.add_argument("--only", choices=(*_NETWORKS, *_TRAINED), nargs="*")
    parser.add_argument("--times", action="store_true", help="measure times alone")
    parser.add_argument("--packages", type=Path, default=default_folder())
    parser.add_argument("-o", "--output", type=Path, default=_FILE)
    options = parser.parse_args()
    torch.manual_seed(0)
    with limited(1):
        sections, whole = [], []
        for key in options.only if options.only is not None else (*_NETWORKS, *_TRAINED):
            case = real(key, options.packages) if key in SUBJECTS else trained(key, _TRAINED[key])
            rows = []
            for line in passes(case):
                print(line, flush=True)
                whole.append(line)
            for row in () if options.times else rows_of(case):
                print(key, row, flush=True)
                rows.append(row)
            sections.append((case, rows))
        timings = []
        for line in times():
            print(line, flush=True)
            timings.append(line)
        options.output.write_text(page(sections, whole, timings))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
