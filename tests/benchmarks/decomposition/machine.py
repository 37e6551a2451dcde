"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from tests.benchmarks.decomposition import threads
from threadpoolctl import threadpool_info

_PACKAGES = ("numpy", "scipy", "tensorly", "torch", "scikit-learn")


def statement(number: int | None = None) -> str:
    """Cores, model, threads, versions, and the BLAS with the architecture it is dispatched to."""
    number = threads.count() if number is None else number
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return (
        f"on {os.cpu_count()} cores of {_model()} with {number} thread{'s'[: number > 1]} in every "
        f"BLAS pool and in PyTorch; Python {platform.python_version()}, {versions}; BLAS: "
        f"{', '.join(_pools())}; PyTorch's own, {torch.backends.cpu.get_cpu_capability()}"
    )


def _model() -> str:
    """The model of the CPU, as the kernel names it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _pools() -> list[str]:
    """Name, version, architecture and owner of each BLAS that is loaded."""
    found = []
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            owner = Path(pool["filepath"]).parent.name.removesuffix(".libs")
            architecture = pool.get("architecture", "architecture unknown")
            found.append(f"{pool['internal_api']} {pool['version']} ({architecture}) of {owner}")
    return sorted(found)
