from __future__ import annotations

from typing import Any

from rankfold_numpy.harness import NumpyHarness

from rankfold.testing import CHECKS
from rankfold.testing.check import Check, check


def test_a_function_becomes_a_check_of_its_name_with_its_promise() -> None:
    seen: list[Any] = []

    @check("read", "size")
    def check_weights(harness: Any) -> None:
        """Weights are kept."""
        seen.append(harness)

    assert isinstance(check_weights, Check)
    assert (check_weights.name, check_weights.promise) == ("weights", "Weights are kept.")
    assert check_weights.needs == ("read", "size")
    harness = NumpyHarness()
    check_weights(harness)
    assert seen == [harness]


def test_every_check_makes_a_promise() -> None:
    assert all(item.promise for item in CHECKS.values())
