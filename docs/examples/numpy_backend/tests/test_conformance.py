"""The conformance kit on the example: the harness is all that has to be written."""

from __future__ import annotations

import pytest
from rankfold_numpy.harness import NumpyHarness

from rankfold.testing.suite import AdapterSuite


class TestNumpyBackend(AdapterSuite):
    @pytest.fixture
    def harness(self) -> NumpyHarness:
        return NumpyHarness()
