"""Compresses trained ONNX networks and runs them by onnxruntime.

    python -m tests.benchmarks.onnx

installs packages that ship such networks into a folder of its own, in the user's cache unless
`--packages` names another, compresses each at some shares of its multiply-accumulates, tests it on
data unlike the calibration data, and writes docs/results/onnx.md. `--rows` keeps what was measured
in a file, so that the networks can be measured one by one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from tests.benchmarks.onnx.same_network import section_of
from tests.benchmarks.onnx.subjects import SUBJECTS, Data, outputs
from tests.benchmarks.real.packages import default_folder, install

import rankfold as rf

_FILE = Path(__file__).parents[3] / "docs" / "results" / "onnx.md"
_TURNS = 200
WAYS = ("refitted", "calibrated", "weights alone")
Row = dict[str, Any]


def rows_of(
    key: str, folder: Path, shares: Sequence[float], ways: Sequence[str], *, timed: bool
) -> Iterator[Row]:
    """Compress a network in every way at every share, and time it on a machine that is idle."""
    subject = SUBJECTS[key]
    install(folder, [subject.package])
    model = subject.model(folder)
    data = subject.data(model, 0)
    original = outputs(model, data.test)
    yield {
        "subject": key,
        "way": "original",
        "scores": dict(subject.scores(original, original, data.truth)),
    }
    inputs = {name: _one(name, array) for name, array in data.test[0].items()}
    began = time.process_time()
    moments = (
        rf.gather(model, data.calibration, inputs=inputs) if ways != ("weights alone",) else None
    )
    gathering = time.process_time() - began
    for share in shares:
        smalls: list[Any] = []
        rows: list[Row] = []
        for way in ways:
            began = time.process_time()
            small = _compressed(model, inputs, share, way, data, moments)
            seconds = time.process_time() - began + (gathering if way != "weights alone" else 0)
            assert small.plan.macs is not None
            scored = subject.scores(outputs(small.model, data.test), original, data.truth)
            smalls.append(small.model)
            rows.append(
                {
                    "subject": key,
                    "way": way,
                    "asked": share,
                    "left": small.plan.macs[1] / small.plan.macs[0],
                    "parameters": small.plan.model_params[1] / small.plan.model_params[0],
                    "scores": dict(scored),
                    "seconds": seconds,
                }
            )
        if not timed:
            yield from rows
            continue
        whole, *times = least_seconds([model, *smalls], inputs)
        for row, spent in zip(rows, times, strict=True):
            yield {**row, "pass": spent / whole}


def least_seconds(models: Sequence[Any], inputs: dict[str, Any]) -> list[float]:
    """The least time of a pass of each model on one thread, over many passes in turns.

    The least and not the median: whatever else a machine does can only make a pass slower.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(m.SerializeToString(), options) for m in models]
    least = [math.inf] * len(sessions)
    for _ in range(_TURNS):
        for index, running in enumerate(sessions):
            began = time.perf_counter()
            running.run(None, inputs)
            least[index] = min(least[index], time.perf_counter() - began)
    return least


def _one(name: str, array: Any) -> Any:
    """An input of one example; those of a state have them along the second axis."""
    if not array.ndim:
        return array
    return array[:, :1] if name == "state" else array[:1]


def _compressed(
    model: Any, inputs: Any, share: float, way: str, data: Data, moments: Any
) -> rf.Compressed:
    budget = rf.Budget(macs=share)
    if way == "weights alone":
        return rf.compress(model, budget, inputs=inputs)
    return rf.compress(
        model,
        budget,
        inputs=inputs,
        calibration=data.calibration,
        moments=moments,
        refit=way == "refitted",
    )


def page(rows: Sequence[Row], machine: str) -> str:
    """A section for each network."""
    lines = [
        "# ONNX networks",
        "",
        "Written by",
        "",
        "```sh",
        "python -m tests.benchmarks.onnx",
        "```",
        "",
        f"{machine}.",
        "",
        "The networks are those that packages on PyPI ship, compressed as ONNX graphs and run by",
        "onnxruntime. Nothing is fine-tuned, no label is used, and the test data is unlike the",
        "calibration data. *refitted* is `rf.compress(model, rf.Budget(macs=...), inputs=...,",
        "calibration=...)`, *calibrated* the same with `refit=False`, *weights alone* without",
        "data. *left* is the share of the multiply-accumulates of the layers, *parameters* that of",
        "the whole model. Seconds are CPU time of the compression, with the pass over the",
        "calibration data.",
    ]
    timed = any("pass" in row for row in rows)
    if timed:
        lines += [
            "*pass* is the least time of a pass of one example on one thread, of 200 in turns with",
            "the others, over that of the original.",
        ]
    else:
        lines += [
            "The machine was busy, so that times of a pass were not measured (`--no-times`). The",
            "rows come from several runs (`--only`, `--rows`).",
        ]
    for key, subject in SUBJECTS.items():
        chosen = [row for row in rows if row["subject"] == key]
        original = next((row for row in chosen if row["way"] == "original"), None)
        if original is None:
            continue
        names = list(original["scores"])
        whole = ", ".join(f"{name}: {value:.4g}" for name, value in original["scores"].items())
        lines += ["", f"## {subject.name}", "", f"{subject.about}. Original: {whole}.", ""]
        lines += [
            f"| asked | way | left | parameters | {' | '.join(names)} | seconds |"
            + " pass |" * timed,
            f"|---:|---|---:|---:|{'---:|' * (len(names) + 1 + timed)}",
        ]
        lines += [_line(row, names) for row in chosen if row["way"] != "original"]
    return "\n".join(lines) + "\n"


def _line(row: Row, names: Sequence[str]) -> str:
    scores = " | ".join(f"{row['scores'][n]:.{1 if '%' in n else 4}f}" for n in names)
    shares = f"{row['left']:.1%} | {row['parameters']:.1%}"
    times = f"{row['seconds']:.1f}" + (f" | {row['pass']:.2f}" if "pass" in row else "")
    return f"| {row['asked']:.0%} | {row['way']} | {shares} | {scores} | {times} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.onnx")
    parser.add_argument("--only", choices=tuple(SUBJECTS), nargs="+", default=tuple(SUBJECTS))
    parser.add_argument("--shares", type=float, nargs="+", help="of the MACs")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--packages", type=Path, default=default_folder())
    parser.add_argument("--rows", type=Path, help="a file of rows: added to, and all written")
    parser.add_argument("--no-times", action="store_true", help="of passes: on a busy machine")
    parser.add_argument("-o", "--output", type=Path, default=_FILE)
    options = parser.parse_args()
    rows: list[Row] = []
    if options.rows and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    with limited(1):
        for key in options.only:
            shares = options.shares or SUBJECTS[key].shares
            ways, timed = tuple(options.ways), not options.no_times
            for row in rows_of(key, options.packages, shares, ways, timed=timed):
                rows.append(row)
                print(json.dumps(row), flush=True)
                if options.rows:
                    with options.rows.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnxruntime"))
    # The section of another command stays.
    kept = section_of(options.output.read_text()) if options.output.exists() else ""
    options.output.write_text(page(rows, f"{statement(1)}; {packages}") + kept)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
