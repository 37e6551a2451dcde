"""What a policy can do beyond the minimum is found out once, and told where it is none."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

import rankfold as rf
from rankfold.plugins import Allocation, Choice
from rankfold.policies.validation import checked_policy


@dataclass(frozen=True)
class Plain:
    name: ClassVar[str] = "plain"

    def allocate(self, layers):
        yield from (Choice(None, reason="left") for _ in layers)


class OfModel(Plain):
    judges = "model"

    def allocate_model(self, layers):
        return Allocation([Choice(None, reason="left") for _ in layers])


class Searching(OfModel):
    looks_at = "times"

    def search(self, model, attempt, resource):
        return attempt(OfModel())


def test_a_plain_policy_judges_one_layer_at_a_time() -> None:
    checked = checked_policy(Plain())
    assert (checked.judges, checked.looks_at) == ("layer", "plans")
    assert checked.of_model is None
    assert checked.searching is None


def test_optional_parts_are_found() -> None:
    policy = Searching()
    checked = checked_policy(policy)
    assert (checked.judges, checked.looks_at) == ("model", "times")
    assert checked.of_model is policy
    assert checked.searching is policy


@pytest.mark.parametrize(
    ("budget", "looks_at"),
    [
        (rf.Budget(params=0.5), "plans"),
        (rf.Budget(latency=0.5), "times"),
        (rf.Budget(drop=0.1, evaluate=lambda model: 1.0), "models"),
        (rf.Budget(drop=0.1, latency=0.5, evaluate=lambda model: 1.0), "models"),
    ],
)
def test_a_budget_looks_at_no_more_than_it_needs(budget: rf.Budget, looks_at: str) -> None:
    assert checked_policy(budget).looks_at == looks_at


@pytest.mark.parametrize(
    ("attribute", "word"), [("judges", "nobody"), ("looks_at", "everything"), ("judges", None)]
)
def test_a_word_that_is_none_is_named(attribute: str, word: object) -> None:
    policy = Searching()
    object.__setattr__(policy, attribute, word)
    with pytest.raises(rf.RankfoldError, match=rf"{attribute} is .*; use one of"):
        checked_policy(policy)


class Wrapped:
    """Has what another policy has, by asking it."""

    def __init__(self, policy: object) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> object:
        return getattr(self._policy, name)


def test_a_wrapped_policy_is_what_it_wraps() -> None:
    checked = checked_policy(Wrapped(rf.Budget(latency=0.5)))  # type: ignore[arg-type]  # by name
    assert (checked.judges, checked.looks_at) == ("model", "times")
    assert checked.of_model is not None
    assert checked.searching is not None


def test_a_policy_without_allocate_is_told_so() -> None:
    class Half:
        def allocate_model(self, layers):
            return Allocation([])

    with pytest.raises(rf.RankfoldError, match="has no method allocate"):
        checked_policy(Half())  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("value", [rf.Budget, 0.5, None, "vbmf"])
def test_what_is_no_policy_is_refused(value: object) -> None:
    with pytest.raises(rf.RankfoldError, match=r"use for example rankfold\.VBMF"):
        checked_policy(value)  # type: ignore[arg-type]  # on purpose
