"""How the tests are spread over workers, and how XLA compiles for them."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

# Nearly everything that JAX runs here runs once, so that compiling is what costs: without
# optimisation and the fusion emitters it takes half of the time. One thread each, so that two
# workers do not fight over the cores. XLA ends the process at a flag that it does not know:
# constraints.txt pins the jaxlib that these belong to.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_multi_thread_eigen=false --xla_cpu_parallel_codegen_split_count=1",
)

# XLA is told for its dumps which lines a program comes from, which takes time for each program.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Many programs are ones that were compiled before, for another model of the same shapes, by
# the other worker or by a process that a test began. They are kept for as long as the tests run,
# and not longer: what is compiled for one processor does not run on every other.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# The frameworks alone hold a million objects that a collection walks through in vain. Collected by
# these numbers of new objects in place of Python's (700, 10, 10), the tests take 6 % less CPU time
# (those of the architectures, of the layers and of NNX, in a process); what a test wants collected
# it collects itself.
gc.set_threshold(50_000, 20, 20)

if "PYTEST_XDIST_WORKER" in os.environ:  # so that BLAS threads of one do not spin against another's
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder of compiled programs; a worker has that of the process which began it."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))


def pytest_collection_finish() -> None:
    """Has JAX, where tests import it, lower and draw for less."""
    if "jax" in sys.modules:
        from jax._src import random
        from jax._src.interpreters import mlir

        # A context of its own for each of some 6,000 programs, most of which are one operation,
        # takes a tenth of the time that they take from Python to XLA.
        mlir.make_ir_context = functools.cache(mlir.make_ir_context)
        random.truncated_normal = _drawn_by_numpy(random.truncated_normal)


def _drawn_by_numpy(truncated_normal: Any) -> Any:
    """Draw the initial kernels of layers without a program for each of their shapes."""
    import jax

    def drawn(
        key: Any, lower: float, upper: float, shape: Any = None, dtype: Any = None, **options: Any
    ) -> Any:
        if isinstance(key, jax.core.Tracer):
            return truncated_normal(key, lower, upper, shape, dtype, **options)
        typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        seed = np.asarray(jax.random.key_data(key) if typed else key)
        numbers = np.random.default_rng(seed.tolist()).standard_normal(shape)
        return jax.device_put(np.clip(numbers, lower, upper).astype(dtype))

    return drawn


@pytest.fixture(autouse=True)
def _compiles_afresh() -> Iterator[None]:
    """Has torch.compile forget what it met: it gives up on code that came in many forms."""
    yield
    if "torch._dynamo" in sys.modules:
        import torch

        torch._dynamo.reset()


@pytest.fixture
def few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has CP go every way that it goes, with few sweeps on each: for what holds of any fit."""
    from rankfold.decompose.cp_als import _Effort

    effort = _Effort(starts=3, trial_sweeps=2, sweeps=9, last_sweeps=3)
    monkeypatch.setattr(_Effort, "of", staticmethod(lambda tensor, rank: effort))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file on one worker: what they share is made and compiled once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)
