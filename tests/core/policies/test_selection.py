from __future__ import annotations

from typing import Any

import pytest

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.policies.selection import Selection, check_patterns, listed, matches

PATHS = (("stem",), ("blocks.0.conv", "tied"), ("head[0]",))


def test_a_shared_layer_is_matched_by_any_of_its_paths() -> None:
    assert matches("blocks.*", PATHS[1])
    assert matches("tied", PATHS[1])
    assert not matches("Tied", PATHS[1])


def test_a_path_with_the_signs_of_patterns_matches_itself() -> None:
    assert matches("head[0]", PATHS[2])
    assert not matches("head[0]", ("head0x",))


def test_excluding_comes_before_including() -> None:
    selection = Selection(rf.VBMF(), include=("stem", "head*"), exclude="st*")
    assert [selection.left_out(paths) for paths in PATHS] == [
        "excluded by 'st*'",
        "not included",
        "",
    ]


def test_the_first_override_that_matches_decides() -> None:
    overrides = {"tied": rf.Ratio(0.5), "*": rf.Energy(0.9)}
    selection = Selection(rf.VBMF(), overrides=overrides)
    assert [selection.policy_of(paths) for paths in PATHS] == [
        rf.Energy(0.9),
        rf.Ratio(0.5),
        rf.Energy(0.9),
    ]
    assert selection.policies == (rf.VBMF(), rf.Ratio(0.5), rf.Energy(0.9))
    assert Selection(rf.VBMF()).policy_of(PATHS[0]) == rf.VBMF()


def test_a_layer_is_named_by_what_includes_or_overrides_it() -> None:
    selection = Selection(rf.VBMF(), include=["stem"], overrides={"tied": rf.VBMF()})
    assert [selection.names(paths) for paths in PATHS] == [True, True, False]
    assert not Selection(rf.VBMF()).names(PATHS[0])


def test_a_pattern_that_matches_nothing_is_named_with_some_of_the_layers() -> None:
    many = [(f"layer{index}",) for index in range(11)]
    with pytest.raises(RankfoldError, match=r"exclude: pattern 'no\*' matches no layer; .* 3 more"):
        Selection(rf.VBMF(), exclude="no*").check(many)
    with pytest.raises(RankfoldError, match="the layers are none"):
        check_patterns("include", ["a"], [])
    Selection(rf.VBMF(), include="layer1*", overrides={"layer2": rf.VBMF()}).check(many)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ()}, "include: no pattern"),
        ({"include": 3}, "include: 3; give a glob pattern"),
        ({"exclude": ("a", 3)}, r"exclude: \('a', 3\)"),
        ({"overrides": [("a", rf.VBMF())]}, "overrides: list; give a mapping"),
        ({"overrides": {"a": rf.VBMF}}, "VBMF"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RankfoldError, match=message):
        Selection(rf.VBMF(), **arguments)


def test_one_name_is_a_list_of_one() -> None:
    assert listed("ab") == ("ab",)
    assert listed(iter("ab")) == ("a", "b")  # type: ignore[arg-type]  # any iterable will do


@pytest.mark.parametrize(
    "patterns", [iter(["2"]), (path for path in ["2"])], ids=["iter", "generator"]
)
def test_patterns_may_be_any_iterable(patterns: Any) -> None:
    selection = Selection(rf.VBMF(), exclude=patterns)
    assert selection.left_out(("2",)) == selection.left_out(("2",)) == "excluded by '2'"
    assert selection.left_out(("0",)) == ""
