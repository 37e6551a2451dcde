"""How the tests are spread over workers, and how XLA compiles for them."""

from __future__ import annotations

import gc
import os
from typing import Any

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

# The frameworks alone hold a million objects that a collection walks through in vain. Collected by
# these numbers of new objects in place of Python's (700, 10, 10), the tests take 6 % less CPU time
# (those of the architectures, of the layers and of NNX, in a process); what a test wants collected
# it collects itself.
gc.set_threshold(50_000, 20, 20)

if "PYTEST_XDIST_WORKER" in os.environ:  # so that BLAS threads of one do not spin against another's
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file on one worker: what they share is made and compiled once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)
