"""The same number of threads for everything that is compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


def count() -> int:
    """RANKFOLD_BENCHMARK_THREADS, or the cores that this process may use."""
    return int(os.environ.get("RANKFOLD_BENCHMARK_THREADS", len(os.sched_getaffinity(0))))


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Every BLAS and OpenMP pool that is loaded, and PyTorch, at that number of threads."""
    before = torch.get_num_threads()
    with threadpool_limits(threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
