"""Names without what wrappers add to them, which the plugins of frameworks declare."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rankfold.errors import RankfoldError
from rankfold.plugins.hookspecs import AdapterSpec
from rankfold.plugins.registry import Registry
from rankfold.storage import wrapper_prefixes
from rankfold.storage.wrapper_prefixes import matched, unwrapped, wrapper_names


@pytest.fixture(autouse=True)
def frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = (
        AdapterSpec("first", ("a:B",), "a:C", wrapper_parts=("_in",), wrapper_fronts=("front",)),
        AdapterSpec("second", ("b:B",), "b:C", wrapper_fronts=("top",)),
        AdapterSpec("third", ("c:B",), "c:C"),
    )
    registry = Registry(adapters={spec.name: spec for spec in specs})
    monkeypatch.setattr(wrapper_prefixes, "registry", lambda: registry)


NAMES = {
    "plain": (["a", "b.c"], ["a", "b.c"], ()),
    "parts anywhere": (["_in.a", "b._in.c", "d"], ["a", "b.c", "d"], ("_in",)),
    "a front": (["front.a", "front.b"], ["a", "b"], ("front",)),
    "fronts of two": (["top.front.top.a", "top.front.top.b"], ["a", "b"], ("front", "top")),
    "a front of some": (["front.a", "b"], ["front.a", "b"], ()),
    "a longer word": (["fronts.a", "fronts.b"], ["fronts.a", "fronts.b"], ()),
    "none": ([], [], ()),
}


@pytest.mark.parametrize(("names", "short", "parts"), NAMES.values(), ids=NAMES)
def test_what_plugins_declare_is_taken_away(
    names: Sequence[str], short: Sequence[str], parts: tuple[str, ...]
) -> None:
    assert unwrapped(names) == (dict(zip(names, short, strict=True)), parts)


@pytest.mark.parametrize(
    "names", [("_in.a", "a"), ("top.a", "a"), ("front.a", "a", "b", "front.b")]
)
def test_two_names_that_become_one_are_told(names: Sequence[str]) -> None:
    with pytest.raises(RankfoldError, match=rf"'{names[0]}' and|and '{names[0]}'"):
        unwrapped(names)


def test_names_are_matched_whatever_wraps_either_side() -> None:
    assert matched(["front.a", "front.b"], ["_in.a", "_in.b"]) == {
        "front.a": "_in.a",
        "front.b": "_in.b",
    }
    assert matched(["net.a", "net.b"], ["top.a", "top.b"]) == {"net.a": "top.a", "net.b": "top.b"}


def test_parts_of_all_frameworks_are_known() -> None:
    assert wrapper_names() == {"_in", "front", "top"}
