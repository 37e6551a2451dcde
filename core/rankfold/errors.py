"""The ways in which rankfold says no."""


class RankfoldError(ValueError):
    """A call that cannot be carried out: the message names the layer, the value and the remedy."""


class Infeasible(RankfoldError):  # noqa: N818 - what it says of a budget
    """Limits that cannot be kept.

    Attributes:
        factor: the least factor on all of them with which they can.
    """

    def __init__(self, message: str, factor: float) -> None:
        super().__init__(message)
        self.factor = factor


class Refused(Exception):  # noqa: N818 - a decision with a reason, not a failure
    """One layer is left alone, and this is why; it becomes the `reason` in the plan."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
