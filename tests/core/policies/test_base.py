"""Arguments of policies, and their texts."""

import pytest

import rankfold as rf
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy


@pytest.mark.parametrize("given", ["0.9", "x"])
@pytest.mark.parametrize("policy", [rf.Energy, rf.Ratio, rf.VBMF])
def test_text_in_place_of_a_number_is_named(policy: type[Policy], given: str) -> None:
    with pytest.raises(rf.RankfoldError, match=rf"^{policy.__name__}: \w+ '{given}'; use one"):
        policy(given)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rf.Energy(0.0),
        lambda: rf.Energy(1.1),
        lambda: rf.Energy(float("nan")),
        lambda: rf.Ratio(0.0),
        lambda: rf.Ratio(-1),
        lambda: rf.VBMF(weaken=1.5),
        lambda: rf.VBMF(weaken=-0.1),
        lambda: rf.VBMF(sigma2=0.0),
        lambda: rf.Ratio(None),
        lambda: rf.VBMF(sigma2="x"),
    ],
)
def test_arguments_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(rf.RankfoldError, match=r"use one|is positive"):
        make()


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("vbmf:", rf.VBMF()),
        ("vbmf:0.25", rf.VBMF(weaken=0.25)),
        ("energy:0.9", rf.Energy(0.9)),
        ("ratio:1/4", rf.Ratio(0.25)),
        ("ranks:full", rf.Ranks("full")),
        ("ranks:16", rf.Ranks(16)),
        ("ranks:16,24", rf.Ranks((16, 24))),
    ],
)
def test_policies_are_read_from_text(text: str, policy: Policy) -> None:
    name, _, argument = text.partition(":")
    assert registry().policies[name].from_text(argument) == policy


@pytest.mark.parametrize(
    "text", ["energy:", "ratio:a", "ratio:1/0", "ranks:", "ranks:a,b", "vbmf:x"]
)
def test_bad_text_is_an_error_that_shows_how(text: str) -> None:
    name, _, argument = text.partition(":")
    with pytest.raises(rf.RankfoldError, match=f"policy {name}: .*write"):
        registry().policies[name].from_text(argument)
