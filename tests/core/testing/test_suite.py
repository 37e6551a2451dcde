from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.harness import NumpyHarness
from tests.core.testing.wrong_adapters import harness_of

from rankfold.testing import CHECKS
from rankfold.testing.suite import AdapterSuite


class CountsOneMore(NumpyAdapter):
    def size(self, model: Any) -> int:
        return int(super().size(model)) + 1


class Expecting(AdapterSuite):
    expected_failures: Mapping[str, str] = {"size": "not yet", "layers": "not yet"}  # type: ignore[misc]


WRONG = harness_of(NumpyHarness, CountsOneMore)


def test_a_failure_is_raised_as_it_is() -> None:
    AdapterSuite().test_adapter("layers", WRONG)
    with pytest.raises(AssertionError, match=r"size\(\) is 85 in place of 84"):
        AdapterSuite().test_adapter("size", WRONG)


def test_what_the_harness_lacks_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match="does not have compilation"):
        AdapterSuite().test_adapter("compiled", NumpyHarness())


def test_failures_that_are_expected_must_happen() -> None:
    with pytest.raises(pytest.xfail.Exception, match="not yet"):
        Expecting().test_adapter("size", WRONG)
    with pytest.raises(pytest.fail.Exception, match="passes, though it was expected to fail"):
        Expecting().test_adapter("layers", WRONG)
    Expecting().test_expected_failures_are_checks()


def test_every_check_is_a_test() -> None:
    (mark,) = AdapterSuite.test_adapter.pytestmark  # type: ignore[attr-defined]  # of pytest
    assert mark.args == ("name", list(CHECKS))
