"""Every check there is, and how each of them ends on one backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rankfold.errors import RankfoldError
from rankfold.faults import is_users, shown
from rankfold.testing import (
    distilling,
    expanding,
    interpolating,
    keeping,
    learning,
    reading,
    replacing,
)
from rankfold.testing.check import Check
from rankfold.testing.harness import Harness, Unsupported

CHECKS: dict[str, Check] = {
    check.name: check
    for module in (reading, replacing, keeping, expanding, interpolating, learning, distilling)
    for check in vars(module).values()
    if isinstance(check, Check)
}
"""All checks by name, in an order in which no check comes before those it rests on."""

Status: TypeAlias = Literal["passed", "failed", "expected", "blocked", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check.

    Attributes:
        name: of the check.
        status: "passed", "failed", "expected" (it failed as it was said to), "blocked" (a check it
            rests on failed) or "skipped" (the framework does not have what it needs).
        reason: why it did not pass.
        error: what a check that failed raised.
    """

    name: str
    status: Status
    reason: str = ""
    error: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def ok(self) -> bool:
        """True if there is nothing to mend here."""
        return self.status not in ("failed", "blocked")


def check_adapter(
    harness: Harness, expected_failures: Mapping[str, str] | None = None
) -> list[CheckResult]:
    """Run every check on a backend.

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
    check_names(expected)
    results: dict[str, CheckResult] = {}
    for name, check in CHECKS.items():
        ended = [results[need] for need in check.needs]
        # One fault would else be told as many. A check that was skipped blocks nothing: what it
        # needs is missing from the harness, not from the adapter.
        blocking = [r.name for r in ended if r.status in ("failed", "expected", "blocked")]
        if blocking:
            results[name] = CheckResult(name, "blocked", f"rests on {blocking[0]!r}")
        else:
            results[name] = run_check(name, harness, expected.get(name))
    return list(results.values())


def check_names(names: Iterable[str]) -> None:
    """Check that every name is that of a check.

    Raises:
        RankfoldError: naming the first that is not.
    """
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise RankfoldError(f"no check is named {unknown[0]!r}; there are {', '.join(CHECKS)}")


def run_check(name: str, harness: Harness, expected: str | None) -> CheckResult:
    """Run one check on a backend.

    Args:
        name: of the check.
        harness: of the backend.
        expected: why it is known to fail; None where it has to pass.
    """
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
        return CheckResult(name, "failed", text, error)
    if expected is not None:
        return CheckResult(name, "failed", f"passes, though it was expected to fail: {expected}")
    return CheckResult(name, "passed")
