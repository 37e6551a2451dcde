"""Modules exchanged by identity in everything that can hold them."""

import functools
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from torch import nn

from rankfold.state.transaction import Changes
from rankfold_torch.surgery.exchange import exchange


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Record:
    layer: Any
    other: Any = None


def exchanged(holder: Any, old: nn.Module, new: nn.Module) -> Any:
    """What a model holds in place of something, once the changes are made."""
    model = nn.Module()
    vars(model)["held"] = holder
    changes = Changes()
    exchange(model, {id(old): new}, changes)
    assert model.held is holder  # prepared, and not made
    changes.make()
    return model.held


HOLDERS: dict[str, Any] = {
    "list in a dict": lambda m: {"a": [0, m], "b": m},
    "deque": lambda m: deque([m, 1]),
    "namespace": lambda m: SimpleNamespace(layer=m),
    "frozen dataclass": lambda m: Record(m),
    "named tuple": lambda m: Pair(m, (1, m)),
    "set": lambda m: {m},
    "frozenset in a tuple": lambda m: (1, frozenset({m})),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_every_holder_holds_the_new_module(kind: str) -> None:
    old, new, hold = nn.Linear(5, 3), nn.Linear(2, 2), HOLDERS[kind]
    holder = hold(old)
    after = exchanged(holder, old, new)
    assert after == hold(new)
    assert type(after) is type(holder)


def test_a_partial_is_made_anew_with_what_others_put_on_it() -> None:
    old, new = nn.Linear(5, 3), nn.Linear(2, 2)
    holder: Any = functools.partial(print, old, file=old, end="")
    holder.note = "kept"
    after = exchanged(holder, old, new)
    assert (after.func, after.args) == (print, (new,))
    assert after.keywords == {"file": new, "end": ""}
    assert after.note == "kept"
    assert holder.args == (old,)


def test_what_holds_no_such_module_stays_the_same_object() -> None:
    old, new, other = nn.Linear(5, 3), nn.Linear(2, 2), nn.Linear(3, 3)
    tuples = ((1, other), functools.partial(print, other), frozenset({other}))
    holder = [*tuples, old]
    after = exchanged(holder, old, new)
    assert after is holder
    assert [a is b for a, b in zip(after, tuples, strict=False)] == [True] * 3
    assert after[3] is new


def test_the_order_of_children_and_circles_are_kept() -> None:
    old, new = nn.Linear(5, 3), nn.Linear(2, 2)
    model: Any = nn.Sequential(OrderedDict(a=old, b=nn.ReLU(), c=old))
    circle: list[Any] = [old]
    circle.append(circle)
    model.parts = circle
    changes = Changes()
    exchange(model, {id(old): new}, changes)
    changes.make()
    assert list(model._modules) == ["a", "b", "c"]
    assert model.a is model.c is circle[0] is new
    assert circle[1] is circle
    changes.take_back()
    assert model.a is model.c is circle[0] is old
