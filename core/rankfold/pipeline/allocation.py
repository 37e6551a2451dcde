"""What a policy chooses for each layer, with the faults of the policy told as such.

A policy decides on many layers, so its fault ends the call.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.faults import contained, is_ours, shown
from rankfold.layers.group import Group
from rankfold.layers.layer import Layer
from rankfold.policies.base import Choice, Policy

_LONGEST = 10_000


def allocated(policy: Policy, group: Group) -> Iterator[tuple[Layer, Choice]]:
    """Each layer with its choice.

    Raises:
        RankfoldError: the policy fails, or gives something else than one choice per layer.
    """
    who = f"policy {shown(policy)}"
    with contained(who, RankfoldError):
        choices = iter(policy.allocate(group))
    if not group:  # its limits hold where nothing is left to choose
        with contained(who, RankfoldError):
            next(choices, None)
    for layer in group:
        with contained(who, RankfoldError):
            choice = _checked(next(choices, None), f"layer {layer.path!r}: {who}")
        if not is_ours(policy) and not isinstance(layer.op.weight, np.ndarray):
            layer.release()  # what can be written to may have been: it is read anew
        yield layer, choice
    with contained(who, RankfoldError):  # where it may still do something
        getattr(choices, "close", lambda: None)()


def named(policy: Policy) -> str:
    """A policy as plans record it."""
    return shown(policy, _LONGEST)


def _checked(choice: object, who: str) -> Choice:
    if not isinstance(choice, Choice):
        raise RankfoldError(
            f"{who} gave {shown(choice)} for it; a policy yields one rankfold.Choice per layer"
        )
    if not isinstance(choice.method, str | None) or not isinstance(choice.reason, str):
        raise RankfoldError(
            f"{who} gave {shown(choice)} for it; its method and its reason are texts"
        )
    reason = choice.reason
    if choice.method is None and not reason:
        reason = "left alone by its policy, without a reason"
    return Choice(choice.method, tuple(map(operator.index, choice.ranks)), reason)
