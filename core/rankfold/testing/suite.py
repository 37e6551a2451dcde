"""`AdapterSuite`: the checks as a pytest class; it needs pytest, the rest of rankfold does not.

class TestMyAdapter(AdapterSuite):
    expected_failures = {"compiled": "the framework has no compiler"}

    @pytest.fixture
    def harness(self):
        return MyHarness()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest

from rankfold.testing.harness import Harness
from rankfold.testing.runner import CHECKS, check_names, run_check


class AdapterSuite:
    """Subclass it with a fixture `harness`; one for all checks has them compress each layer once.

    Attributes:
        expected_failures: names of checks that are known to fail, with the reason; they must fail.
    """

    expected_failures: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture
    def harness(self) -> Harness:
        """The backend to check."""
        raise NotImplementedError("give the suite a fixture `harness`")

    def test_expected_failures_are_checks(self) -> None:
        """Every name in `expected_failures` is that of a check."""
        check_names(self.expected_failures)

    @pytest.mark.parametrize("name", list(CHECKS))
    def test_adapter(self, name: str, harness: Harness) -> None:
        """The check of that name."""
        result = run_check(name, harness, self.expected_failures.get(name))
        if result.error is not None:
            raise result.error
        if result.status == "skipped":
            pytest.skip(result.reason)
        if result.status == "expected":
            pytest.xfail(result.reason)
        if not result.ok:
            pytest.fail(result.reason)
