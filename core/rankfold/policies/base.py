"""What a policy is: it chooses a method and ranks for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    ClassVar,
    Literal,
    Protocol,
    Self,
    TypeAlias,
    get_args,
)

from rankfold.decompose.base import RankTuple
from rankfold.errors import RankfoldError
from rankfold.faults import contained, shown

if TYPE_CHECKING:
    from rankfold.layers.layer import Layer


Judges: TypeAlias = Literal["layer", "model", "nothing"]


@dataclass(frozen=True)
class Choice:
    """What a policy wants done to one layer: a method with ranks, or None and a reason."""

    method: str | None
    ranks: RankTuple = ()
    reason: str = ""


class Policy(Protocol):
    """Chooses a method and ranks for each layer.

    A policy may have a further attribute `judges`, one of `Judges`. It is "layer" where there is
    none, for a policy that judges one layer at a time: then a layer whose output is an output of
    the model is left alone, unless it is named. "model" is for one that judges the whole model,
    whose limits hold where no layer is left as well, and "nothing" for one that does what it is
    told.

    Attributes:
        name: the word for it on the command line.
    """

    name: ClassVar[str]

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, in their order; lazily where layers do not depend on each other."""

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """The policy from what stands behind the colon on the command line; "" for nothing."""


_JUDGES: tuple[Judges, ...] = get_args(Judges)


def judged(policy: object) -> Judges:
    """What a policy judges; see `rankfold.policies.base.Policy`.

    Raises:
        RankfoldError: its `judges` is none of the words for it.
    """
    with contained(f"policy {shown(policy)}", RankfoldError):
        judges = getattr(policy, "judges", "layer")
        for known in _JUDGES:
            if judges == known:
                return known
    raise RankfoldError(f"policy {shown(policy)}: judges is {shown(judges)}; use one of {_JUDGES}")


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
