"""Random numbers for tests, and what those of checkpoints do without: waiting for a disk."""

import os

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="package")
def _no_waiting():
    """A process that is killed loses nothing that it has handed over; only a machine would."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", os.fstat)  # which refuses what is no handle, as fsync does
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
