"""Reading the argument of a policy from the command line."""

from rankfold.errors import RankfoldError


def fraction(policy: str, argument: str, default: float | None = None) -> float:
    """The number that stands behind the colon.

    Raises:
        RankfoldError: nothing stands there and there is no default, or it is not a number.
    """
    if not argument and default is not None:
        return default
    try:
        whole, slash, part = argument.partition("/")
        return float(whole) / float(part) if slash else float(whole)
    except (ValueError, ZeroDivisionError):
        raise RankfoldError(
            f"policy {policy}: {argument!r} is not a number; write for example {policy}:0.5"
        ) from None
