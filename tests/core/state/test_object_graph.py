"""The search for what an object leads to."""

import functools
import weakref
from typing import Any

from rankfold.state.object_graph import reached


class Thing:
    def __init__(self, held: Any = None) -> None:
        self.held = held


GLOBAL = Thing()


def uses_a_global() -> Thing:
    return GLOBAL


def test_it_names_the_first_start_that_leads_to_a_target() -> None:
    a, b, c = Thing(), Thing(), Thing()
    starts = [("first", [lambda: a]), ("second", {"x": (a, functools.partial(max, b))})]
    assert reached(starts, {id(a), id(b), id(c)}) == {id(a): "first", id(b): "second"}


def test_it_does_not_enter_what_is_known_nor_leaves_nor_globals() -> None:
    target = Thing()
    holder, listed = Thing(target), [target]
    starts = [("known", holder), ("leaf", listed), ("global", uses_a_global), ("class", Thing)]
    targets = {id(target), id(GLOBAL)}
    assert not reached(starts, targets, known={id(holder)}, leaves=(list,))
    assert reached(starts, targets, leaves=(list,)) == {id(target): "known"}


def test_it_follows_weak_references_and_ends_where_they_do() -> None:
    target, gone = Thing(), Thing()
    dead = [weakref.ref(gone), weakref.proxy(gone)]
    del gone
    for held in (weakref.ref(target), weakref.proxy(target), weakref.WeakSet([target])):
        assert reached([("start", [*dead, held])], {id(target)}) == {id(target): "start"}


def test_it_ends_where_objects_hold_each_other() -> None:
    first = Thing()
    first.held = [Thing(first)]
    assert not reached([("start", first)], {id(GLOBAL)})
