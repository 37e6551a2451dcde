"""Deliberately wrong adapters: how a harness gets one, and which checks it fails."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from rankfold.testing import CHECKS, CheckResult
from rankfold.testing.check import Check


def harness_of(kind: type, adapter: Callable[[], Any]) -> Any:
    harness = kind()
    harness.adapter = adapter
    return harness


def failed(results: list[CheckResult]) -> dict[str, str]:
    return {result.name: result.reason for result in results if result.status == "failed"}


def checks_of(module: ModuleType) -> set[str]:
    return {check.name for check in vars(module).values() if isinstance(check, Check)}


def fails(name: str, harness: Any) -> None:
    """Assert that a backend fails one check, and none of those that most rest on."""
    with pytest.raises(AssertionError):
        CHECKS[name](harness)
    for other in ("read", "full_rank"):
        CHECKS[other](harness)
