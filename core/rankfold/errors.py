"""The two ways in which rankfold says no."""


class RankfoldError(ValueError):
    """A call that cannot be carried out: the message names the layer, the value and the remedy."""


class Refused(Exception):  # noqa: N818 - a decision with a reason, not a failure
    """One layer is left alone, and this is why; it becomes the `reason` in the plan."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
