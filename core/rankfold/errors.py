"""The ways in which rankfold says no."""

from __future__ import annotations

from rankfold.console import message


class RankfoldError(ValueError):
    """A call that cannot be carried out: the message names the layer, the value and the remedy.

    What it quotes may come from a file, so it can be printed and is no longer than can be read.

    Example:
        >>> rf.Ratio(2.0)
        Traceback (most recent call last):
        ...
        rankfold.errors.RankfoldError: Ratio: share 2.0; use one above 0 and up to 1
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(message(str(text)))


class Infeasible(RankfoldError):  # noqa: N818 - what it says of a budget
    """Limits that cannot be kept.

    Attributes:
        factor: the least factor on all of them with which they can.
    """

    def __init__(self, text: str, factor: float) -> None:
        super().__init__(text)
        self.factor = factor

    def __reduce__(self) -> tuple[type[Infeasible], tuple[str, float]]:
        """Travel between processes with the factor, which `args` does not hold."""
        return type(self), (str(self), self.factor)


class UnfinishedError(RankfoldError):
    """Nothing is wrong with the model or the call: the same call can be repeated."""


class Refused(Exception):  # noqa: N818 - a decision with a reason, not a failure
    """One layer is left alone, and this is why; it becomes the `reason` in the plan."""

    def __init__(self, reason: str) -> None:
        self.reason = message(str(reason))
        super().__init__(self.reason)
