"""Compresses a checkpoint of 10,000 small layers here and on a dask cluster of two processes.

    python -m tests.benchmarks.scheduling

writes docs/results/scheduling.md. The layers are so small that nearly all of the time goes into
handing them on. A minute or two on two cores.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tests.benchmarks.decomposition.machine import statement

import rankfold as rf
from rankfold.cli.executors import opened

_FILE = Path(__file__).parents[3] / "docs" / "results" / "scheduling.md"
_LAYERS, _FILES, _SHAPE, _TURNS = 10_000, 20, (24, 32), 3
_POLICY = rf.Energy(0.5)


class Counting:
    """An executor that counts what it is given."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.tasks = 0

    def submit(self, *arguments):
        """Passes it on."""
        self.tasks += 1
        return self._executor.submit(*arguments)


def main() -> None:
    """Measures in turns and writes the file."""
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
    ):
        source = _checkpoint(Path(folder) / "source")
        alone, spread, tasks = [], [], 0
        for turn in range(_TURNS + 1):  # the first warms up
            begin = time.perf_counter()
            rf.compress_checkpoint(source, Path(folder) / f"a{turn}", _POLICY)
            middle = time.perf_counter()
            with opened(cluster.scheduler_address.replace("tcp://", "dask://")) as executor:
                counting = Counting(executor)
                rf.compress_checkpoint(
                    source, Path(folder) / f"b{turn}", _POLICY, executor=counting
                )
            end = time.perf_counter()
            if turn:
                alone.append(middle - begin)
                spread.append(end - middle)
                tasks = counting.tasks
    ratio = statistics.median(s / a for s, a in zip(spread, alone, strict=True))
    serial, dask = statistics.median(alone), statistics.median(spread)
    text = [
        "# Handing layers to a cluster",
        "",
        "Written by",
        "",
        "```sh",
        "python -m tests.benchmarks.scheduling",
        "```",
        "",
        statement(),
        "",
        f"A checkpoint of {_LAYERS:,} linear layers of {_SHAPE[0]}×{_SHAPE[1]} in {_FILES} files, "
        f"planned and written with {_POLICY!r}: by one process, and by dask with two worker "
        f"processes on the same machine. Medians of {_TURNS} turns.",
        "",
        "| | seconds | of one process | per layer |",
        "|---|---|---|---|",
        f"| one process | {serial:.1f} | 1 | {1e3 * serial / _LAYERS:.2f} ms |",
        f"| dask, two workers, {tasks} tasks | {dask:.1f} | {ratio:.2f} | "
        f"{1e3 * dask / _LAYERS:.2f} ms |",
    ]
    _FILE.write_text("\n".join(text) + "\n")
    print(f"written to {_FILE}")


def _checkpoint(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    owner = {}
    for part in range(_FILES):
        tensors = {
            f"layers.{part}.{place}.weight": rng.standard_normal(_SHAPE, dtype=np.float32)
            for place in range(_LAYERS // _FILES)
        }
        name = f"model-{part + 1:05}-of-{_FILES:05}.safetensors"
        save_file(tensors, folder / name)
        owner |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owner}))
    return folder


if __name__ == "__main__":
    main()
