"""Plans and compresses whole networks with EVBMF ranks, and profiles it.

    python -m tests.benchmarks.models

writes docs/results/models.md. The times of a network are shares of the serial compression of the
same network, measured in one process. A few minutes on two cores.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.models.networks import resnet50, vgg16
from torch import nn

import rankfold as rf

_FILE = Path(__file__).parents[3] / "docs" / "results" / "models.md"
_METHODS = ("svd", "tucker2")
_STEPS = {
    "Gram matrices": ("subspaces.py", "gram"),
    "eigenpairs": ("subspaces.py", "eigh"),
    "eigenvalues": ("subspaces.py", "eigenvalues"),
    "EVBMF": ("evbmf.py", "from_squares"),
    "HOOI, its eigenpairs included": ("hooi.py", "hooi"),
    "building the modules": ("adapter.py", "build"),
    "checking them": ("verify.py", "check_chain"),
    "the trace": ("adapter.py", "trace"),
}


def main() -> None:
    """Measures both networks and writes the file."""
    x = torch.zeros(1, 3, 224, 224)
    text = [
        "# Whole networks",
        "",
        "Written by",
        "",
        "```sh",
        "python -m tests.benchmarks.models",
        "```",
        "",
        statement(),
        "",
        "EVBMF ranks, methods `svd` and `tucker2`, weights with a power-law spectrum and noise.",
    ]
    for name, network in (("VGG-16", vgg16), ("ResNet-50", resnet50)):
        text += ["", f"## {name}", "", *section(network(), x)]
    _FILE.write_text("\n".join(text) + "\n")
    print(f"written to {_FILE}")


def section(model: nn.Module, x: torch.Tensor) -> list[str]:
    """The lines on one network."""
    policy = rf.VBMF()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2

    def shared() -> None:
        with ThreadPoolExecutor(workers) as executor:
            rf.compress(model, policy, inputs=x, methods=_METHODS, executor=executor)

    profile = cProfile.Profile()
    small = profile.runcall(rf.compress, model, policy, inputs=x, methods=_METHODS)
    forms: dict[str, Callable[[], object]] = {
        "compress": lambda: rf.compress(model, policy, inputs=x, methods=_METHODS),
        "plan": lambda: rf.plan(model, policy, inputs=x, methods=_METHODS),
        "apply of that plan": lambda: rf.apply(model, small.plan, inputs=x),
        f"compress on {workers} threads of an executor": shared,
    }
    seconds = {name: timed(run) for name, run in forms.items()}
    whole = seconds["compress"]
    before, after = small.plan.model_params
    replaced = len(small.plan.replaced)
    lines = [
        f"{replaced} of {len(small.plan.layers)} layers replaced, {before / 1e6:.1f} M parameters "
        f"to {after / 1e6:.1f} M; `compress` takes {whole:.1f} s here.",
        "",
        "| | share of `compress` |",
        "|---|---:|",
        *(f"| {name} | {one / whole:.2f} |" for name, one in seconds.items()),
        "",
        "| where the time of `compress` goes | share |",
        "|---|---:|",
    ]
    stats = pstats.Stats(profile)
    total = stats.total_tt  # type: ignore[attr-defined]
    for step, (file, function) in _STEPS.items():
        spent = sum(
            timing[3]
            for (path, _, name), timing in stats.stats.items()  # type: ignore[attr-defined]
            if name == function and Path(path).name == file and "rankfold" in path
        )
        lines.append(f"| {step} | {spent / total:.2f} |")
    return lines


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
