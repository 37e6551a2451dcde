from __future__ import annotations

from typing import Any

import pytest
from rankfold_numpy.adapter import NumpyAdapter, walk
from rankfold_numpy.harness import NumpyHarness
from tests.core.testing.wrong_adapters import failed, harness_of

from rankfold import RankfoldError
from rankfold.testing import CHECKS, check_adapter
from rankfold.testing.runner import run_check


class ReversedLayers(NumpyAdapter):
    def layers(self, model: Any) -> dict[str, str]:
        return dict(reversed(super().layers(model).items()))


class AlwaysEval(NumpyAdapter):
    def build(self, model: Any, path: str, chain: Any) -> Any:
        built = super().build(model, path, chain)
        for _, layer in walk(built):
            layer.training = False
        return built


OPTIONAL = {
    "expanded",
    "gradients",
    "compiled",
    "moments",
    "follow",
    "refilled",
    "distil",
    "interpolated",
}


def test_a_right_adapter_passes() -> None:
    results = check_adapter(NumpyHarness())
    assert all(result.ok for result in results)
    assert {r.name for r in results if r.status == "skipped"} == OPTIONAL


def test_an_expected_failure_is_none() -> None:
    harness = harness_of(NumpyHarness, AlwaysEval)
    results = {r.name: r for r in check_adapter(harness, {"mode": "no modes yet"})}
    assert results["mode"].status == "expected"
    assert results["mode"].reason == "no modes yet"


def test_an_expected_failure_that_passes_is_a_failure() -> None:
    results = check_adapter(NumpyHarness(), {"mode": "no modes yet"})
    assert "passes, though" in failed(results)["mode"]


def test_an_expected_failure_of_no_check_is_an_error() -> None:
    with pytest.raises(RankfoldError, match="no check is named 'speed'"):
        check_adapter(NumpyHarness(), {"speed": "slow"})


def test_what_rests_on_a_failed_check_is_blocked() -> None:
    results = {r.name: r for r in check_adapter(harness_of(NumpyHarness, ReversedLayers))}
    assert results["read"].status == "blocked"
    assert results["read"].reason == "rests on 'layers'"


def test_no_check_comes_before_those_it_rests_on() -> None:
    names = list(CHECKS)
    for name, check in CHECKS.items():
        assert all(names.index(need) < names.index(name) for need in check.needs)


def test_whatever_an_adapter_raises_is_a_failure_of_its_check() -> None:
    class Exits(NumpyAdapter):
        def size(self, model: Any) -> int:
            raise SystemExit(3)

    result = run_check("size", harness_of(NumpyHarness, Exits), None)
    assert result.status == "failed"
    assert not result.ok
    assert "SystemExit" in result.reason
    assert isinstance(result.error, SystemExit)


def test_the_interrupt_of_the_user_ends_the_checks() -> None:
    class Interrupted(NumpyAdapter):
        def size(self, model: Any) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_check("size", harness_of(NumpyHarness, Interrupted), None)


def test_what_the_harness_lacks_is_skipped_with_the_reason() -> None:
    result = run_check("compiled", NumpyHarness(), None)
    assert (result.status, result.ok) == ("skipped", True)
    assert result.reason == "the harness does not have compilation"
