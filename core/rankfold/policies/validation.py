"""Abilities of an object that is given as a policy, asked for once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from rankfold.errors import RankfoldError
from rankfold.faults import contained, shown
from rankfold.policies.base import AllocatesModel, Judges, Policy, SearchesModels

_JUDGES: tuple[Judges, ...] = get_args(Judges)
_LOOKS: tuple[Literal["plans", "times", "models"], ...] = ("plans", "times", "models")


@dataclass(frozen=True, eq=False)
class CheckedPolicy:
    """A policy with its optional parts, None where it lacks them.

    Attributes:
        policy: as given.
        judges: what it judges.
        of_model: where it weighs all layers against each other.
        searching: where it tries out models.
        looks_at: what it needs to see of these.
        allows_interpolation: whether interpolative methods are among the default ones.
        distil_steps: how many steps these are trained before.
    """

    policy: Policy
    judges: Judges
    of_model: AllocatesModel | None
    searching: SearchesModels | None
    looks_at: Literal["plans", "times", "models"]
    allows_interpolation: bool
    distil_steps: int = 0


def check_scope(policy: object) -> Judges:
    """Return what a policy, or a class of policies, judges.

    Raises:
        RankfoldError: what it says of that is none of the words for it.
    """
    judges: object = "layer"
    with contained(f"policy {shown(policy)}", RankfoldError):
        judges = getattr(policy, "judges", judges)
        for known in _JUDGES:
            if judges == known:
                return known
    raise RankfoldError(f"policy {shown(policy)}: judges is {shown(judges)}; use one of {_JUDGES}")


def checked_policy(policy: Policy) -> CheckedPolicy:
    """Find out what a policy can do.

    Raises:
        RankfoldError: it is none, or what it says of itself is none of the words for it.
    """
    who = f"policy {shown(policy)}"
    # By name and not by `isinstance`: since Python 3.12 that does not see what `__getattr__` gives,
    # and policies are wrapped.
    with contained("policy", RankfoldError):
        usable = callable(getattr(policy, "allocate", None))
        allocates = callable(getattr(policy, "allocate_model", None))
        searches = callable(getattr(policy, "search", None))
    if isinstance(policy, type) or not usable:
        lacks = " has no method allocate" if allocates or searches else ""
        raise RankfoldError(
            f"{who}{lacks}; use for example rankfold.VBMF(), or 'vbmf' or 'budget:macs=0.5' as text"
        )
    judges = check_scope(policy)
    looks_at: object = "plans"
    interpolative = False
    steps = 0
    with contained(who, RankfoldError):
        interpolative = getattr(policy, "allows_interpolation", False) is True
        of_model = cast(AllocatesModel, policy) if allocates else None
        searching = cast(SearchesModels, policy) if searches else None
        if searching is not None:
            looks_at = getattr(policy, "looks_at", None)
            steps = int(getattr(policy, "distil_steps", 0))
        for known in _LOOKS:
            if looks_at == known:
                return CheckedPolicy(
                    policy, judges, of_model, searching, known, interpolative, steps
                )
    raise RankfoldError(f"{who}: looks_at is {shown(looks_at)}; use one of {_LOOKS}")
