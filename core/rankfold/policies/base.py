"""Protocols of a policy, which chooses a method and ranks for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import (
    Any,
    ClassVar,
    Literal,
    Protocol,
    Self,
    SupportsFloat,
    TypeAlias,
    runtime_checkable,
)

from rankfold.decompose.base import RankTuple
from rankfold.errors import RankfoldError
from rankfold.layers.group import LayerGroup
from rankfold.plan.plan import Plan
from rankfold.plan.tradeoff import Tradeoff

Judges: TypeAlias = Literal["layer", "model", "nothing"]


@dataclass(frozen=True)
class Choice:
    """Choice of a policy for one layer: a method with ranks, or None and a reason.

    Example:
        What a policy gives for each `rankfold.Layer`:

        >>> class Quarter:
        ...     name = "quarter"
        ...
        ...     def allocate(self, layers):
        ...         for layer in layers:
        ...             rank = min(layer.op.weight.shape) // 4
        ...             yield rf.Choice("svd", (rank,)) if rank else rf.Choice(None, reason="tiny")
        >>> rf.plan(nn.Sequential(nn.Linear(40, 32), nn.ReLU()), Quarter())["0"].ranks
        (8,)
    """

    method: str | None
    ranks: RankTuple = ()
    reason: str = ""


class Policy(Protocol):
    """Chooses a method and ranks for each layer.

    What a policy may have beyond this are protocols of their own: `StatesScope`,
    `AllowsInterpolation`, `AllocatesModel` and `SearchesModels`.

    Attributes:
        name: the word for it on the command line.
    """

    name: ClassVar[str]

    def allocate(self, layers: LayerGroup) -> Iterator[Choice]:
        """One choice per layer, in their order; lazily where layers do not depend on each other."""

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """The policy from what stands behind the colon on the command line; "" for nothing."""


@runtime_checkable
class StatesScope(Protocol):
    """A policy that says what it judges; one that does not judges one layer at a time.

    Attributes:
        judges: "layer" for one layer at a time: a layer whose output is an output of the model is
            then left alone, unless it is named. "model" for the whole model, whose limits hold
            where no layer is left as well. "nothing" for a policy that does what it is told.
    """

    judges: Judges


@runtime_checkable
class AllowsInterpolation(Protocol):
    """A policy that says whether interpolative methods are allowed where no methods are named.

    They save parameters at no loss, and gather channels, which takes time. So a policy that weighs
    parameters, or times that are measured, gains by them.

    Attributes:
        allows_interpolation: whether they are; for a policy without it they are not.
    """

    @property
    def allows_interpolation(self) -> bool:
        """Whether interpolative methods are among the default ones."""


@dataclass(frozen=True)
class Allocation:
    """Choices of a policy for a whole model.

    Attributes:
        choices: one per layer, in their order.
        notes: what is to be said of the whole in the plan.
        seconds: of one forward pass (before, after), where the policy predicts them.
        tradeoff: cost against loss, where the policy has seen that; for the report.
    """

    choices: Iterable[Choice]
    notes: tuple[str, ...] = ()
    seconds: tuple[float, float] | None = None
    tradeoff: Tradeoff | None = None


@runtime_checkable
class AllocatesModel(Protocol):
    """A policy that weighs all layers against each other."""

    def allocate_model(self, layers: LayerGroup) -> Allocation:
        """The choices for all layers together; called in place of `allocate`.

        Raises:
            RankfoldError: its limits cannot be kept.
        """


@dataclass(frozen=True, eq=False)
class Outcome:
    """A model compressed by a policy.

    Attributes:
        model: a copy with the replacements; None where none was wanted.
        plan: of it.
        modules: the replacements, by path.
        token: known to whoever made it; copies made with other plans keep it.
    """

    model: Any
    plan: Plan
    modules: Mapping[str, Any]
    token: object = None


@runtime_checkable
class SearchesModels(Protocol):
    """A policy that tries out several models and keeps one of them.

    Attributes:
        looks_at: what it needs to see of each: "plans"; "times", which are measured on a copy of
            the model where there can be one; or "models", each a copy.
    """

    @property
    def looks_at(self) -> Literal["plans", "times", "models"]:
        """Part of a model that is tried out that has to be seen."""

    def search(
        self, model: Any, attempt: Callable[[Policy], Outcome], resource: Literal["params", "macs"]
    ) -> Outcome:
        """The outcome to keep.

        Args:
            model: the original; where the policy looks at models a copy of it, for a score may be
                taken in ways that change what it is taken of.
            attempt: compresses the original by a policy.
            resource: what is known to become cheaper.

        Raises:
            RankfoldError: no outcome is good enough.
        """


@runtime_checkable
class DistilsModels(Protocol):
    """A policy that wants the models that it tries out trained towards the original's outputs.

    Attributes:
        distil_steps: how many steps each is trained, on the calibration examples, before it is
            looked at; 0 for none.
    """

    distil_steps: int


def check_share(policy: str, share: float) -> None:
    """Check the share that a policy is made with.

    Raises:
        RankfoldError: it is no number above 0 and up to 1.
    """
    if not isinstance(share, SupportsFloat) or not 0.0 < share <= 1.0:
        raise RankfoldError(f"{policy}: share {share!r}; use one above 0 and up to 1")


def fraction(policy: str, argument: str, default: float | None = None) -> float:
    """Return the number behind the colon of a policy's text.

    Raises:
        RankfoldError: nothing stands there and there is no default, or it is not a number.
    """
    if not argument and default is not None:
        return default
    try:
        number, slash, divisor = argument.partition("/")
        return float(number) / float(divisor) if slash else float(number)
    except (ValueError, ZeroDivisionError):
        raise RankfoldError(
            f"policy {policy}: {argument!r} is not a number; write for example {policy}:0.5"
        ) from None
