"""`check_adapter`: runs the checks on one backend and says how each ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rankfold.errors import RankfoldError
from rankfold.faults import is_users, shown
from rankfold.testing.checks import CHECKS
from rankfold.testing.harness import Harness, Unsupported

Status: TypeAlias = Literal["passed", "failed", "expected", "blocked", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """How a check ended.

    Attributes:
        name: of the check.
        status: "passed", "failed", "expected" (it failed as it was said to), "blocked" (a check it
            rests on failed) or "skipped" (the framework does not have what it needs).
        reason: why it did not pass.
    """

    name: str
    status: Status
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is nothing to mend here."""
        return self.status not in ("failed", "blocked")


def check_adapter(
    harness: Harness, expected_failures: Mapping[str, str] | None = None
) -> list[CheckResult]:
    """Runs every check on a backend.

    Args:
        harness: of the backend.
        expected_failures: names of checks that are known to fail, with the reason. Such a check
            that passes counts as failed, so that the list never outlives its reasons.

    Returns:
        One result per check, in the order of `CHECKS`.

    Raises:
        RankfoldError: a name is that of no check.
    """
    expected = dict(expected_failures or {})
    unknown = sorted(set(expected) - set(CHECKS))
    if unknown:
        raise RankfoldError(f"no check is named {unknown[0]!r}; there are {', '.join(CHECKS)}")
    results: dict[str, CheckResult] = {}
    for name, check in CHECKS.items():
        ended = [results[need] for need in check.needs]
        blocking = [r.name for r in ended if r.status in ("failed", "expected", "blocked")]
        if blocking:
            results[name] = CheckResult(name, "blocked", f"rests on {blocking[0]!r}")
        else:
            results[name] = _run(name, harness, expected.get(name))
    return list(results.values())


def _run(name: str, harness: Harness, expected: str | None) -> CheckResult:
    try:
        CHECKS[name](harness)
    except Unsupported as missing:
        return CheckResult(name, "skipped", f"the harness does not have {missing}")
    except BaseException as error:  # whatever an adapter raises is its failure
        if is_users(error):
            raise
        if expected is not None:
            return CheckResult(name, "expected", expected)
        text = str(error) if isinstance(error, AssertionError) else shown(error)
        return CheckResult(name, "failed", text)
    if expected is not None:
        return CheckResult(name, "failed", f"passes, though it was expected to fail: {expected}")
    return CheckResult(name, "passed")
