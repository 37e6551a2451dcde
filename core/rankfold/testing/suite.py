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

from rankfold.errors import RankfoldError
from rankfold.testing.checks import CHECKS
from rankfold.testing.harness import Harness, Unsupported


class AdapterSuite:
    """Subclass it with a fixture `harness`.

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
        unknown = sorted(set(self.expected_failures) - set(CHECKS))
        if unknown:
            raise RankfoldError(f"no check is named {unknown[0]!r}; there are {', '.join(CHECKS)}")

    @pytest.mark.parametrize("name", list(CHECKS))
    def test_adapter(self, name: str, harness: Harness) -> None:
        """The check of that name."""
        expected = self.expected_failures.get(name)
        try:
            CHECKS[name](harness)
        except Unsupported as missing:
            pytest.skip(f"the harness does not have {missing}")
        except Exception:
            if expected is None:
                raise
            pytest.xfail(expected)
        else:
            if expected is not None:
                pytest.fail(f"passes, though it was expected to fail: {expected}")
