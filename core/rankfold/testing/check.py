"""`Check`: one property that every adapter must have, as a function with a name.

A check is a function of a `Harness` that raises `AssertionError` with the layer and the fault. It
names the checks it rests on: where one of those fails, it says nothing and counts as blocked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from rankfold.testing.harness import Harness

TOLERANCE = 2e-5
"""For float32, relative to the size of the output."""

Function: TypeAlias = Callable[[Harness], None]


@dataclass(frozen=True)
class Check:
    """A check by its name, what it asserts in words, and the checks it rests on."""

    name: str
    promise: str
    function: Function
    needs: tuple[str, ...]

    def __call__(self, harness: Harness) -> None:
        """Run the check.

        Raises:
            AssertionError: the backend does not do what it promises.
            Unsupported: the framework does not have what the check needs.
        """
        self.function(harness)


def check(*needs: str) -> Callable[[Function], Check]:
    """Turn a function named check_something into the check "something"."""

    def as_check(function: Function) -> Check:
        # The docstring is the promise, as reports show it: it says what holds, not what the
        # function does.
        name = function.__name__.removeprefix("check_")
        return Check(name, (function.__doc__ or "").strip(), function, needs)

    return as_check
