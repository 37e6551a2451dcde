"""Policies as users write them in a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import rankfold as rf
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.from_text import policy_from_table, policy_from_text, text_of


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("vbmf", rf.VBMF()),
        ("energy:0.9", rf.Energy(0.9)),
        ("vbmf:weaken=0.25, sigma2=1e-4", rf.VBMF(0.25, 1e-4)),
        ("ratio:share=1/4", rf.Ratio(0.25)),
        ("ranks:ranks=16", rf.Ranks(16)),
        ("budget:0.5", rf.Budget(params=0.5)),
        ("budget:macs=0.5,params=2/5", rf.Budget(macs=0.5, params=0.4)),
        ("budget:latency=0.7,multiple_of=8", rf.Budget(latency=0.7, multiple_of=8)),
    ],
)
def test_every_field_can_be_written(text: str, policy: Policy) -> None:
    assert policy_from_text(text, registry().policies) == policy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("svd:16", "policy 'svd' is unknown; use one of budget, energy"),
        ("budget:mac=0.5", "'mac=0.5'; write budget:FIELD=VALUE.*the fields are params, macs"),
        ("budget:macs=0.5,macs=0.4", "'macs=0.4' twice"),
        ("budget:macs=0.5,0.4", "'0.4'; write budget:FIELD=VALUE"),
        ("budget:macs=half", "macs=half cannot be read; a number"),
        ("budget:macs=1/0", "not a number"),
        ("budget:drop=0.1,evaluate=score", "evaluate=score cannot be read.*given in Python"),
        ("budget:multiple_of=1.5", "multiple_of=1.5 cannot be read"),
        ("energy:share=2", "share 2.0; use one above 0"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str) -> None:
    with pytest.raises(rf.RankfoldError, match=said):
        policy_from_text(text, registry().policies)


TABLES: dict[str, tuple[dict[str, Any], Policy]] = {
    "no field": ({"name": "vbmf"}, rf.VBMF()),
    "numbers": ({"name": "budget", "macs": 0.5, "params": "2/5"}, rf.Budget(macs=0.5, params=0.4)),
    "a word": ({"name": "ranks", "ranks": "full"}, rf.Ranks("full")),
    "a list": ({"name": "ranks", "ranks": [16, 24]}, rf.Ranks((16, 24))),
    "patterns": (
        {"name": "ranks", "ranks": {"a*": [3, 4], "b": 5}},
        rf.Ranks({"a*": (3, 4), "b": 5}),
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_field_can_be_given_in_a_table(kind: str) -> None:
    table, policy = TABLES[kind]
    assert policy_from_table(table, registry().policies) == policy


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"macs": 0.5}, "give its name"),
        ({"name": "svd"}, "policy 'svd' is unknown"),
        ({"name": "budget", "mac": 0.5}, "'mac=0.5'.*the fields are params, macs"),
        ({"name": "budget", "macs": [0.5]}, r"macs=\[0.5\] cannot be read"),
        ({"name": "energy", "share": 2}, "share 2.0; use one above 0"),
        ({"name": "budget", "drop": 0.1, "evaluate": "a:b"}, "evaluate=a:b cannot.*in Python"),
    ],
)
def test_what_a_table_cannot_say_is_told(table: dict[str, Any], said: str) -> None:
    with pytest.raises(rf.RankfoldError, match=said):
        policy_from_table(table, registry().policies)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (rf.VBMF(), "vbmf"),
        (rf.VBMF(0.25, 1e-4), "vbmf:weaken=0.25,sigma2=0.0001"),
        (rf.Energy(0.9), "energy:0.9"),
        (rf.Ranks((16, 24)), "ranks:16,24"),
        (rf.Ranks("full"), "ranks:full"),
        (rf.Budget(params=0.5), "budget:0.5"),
        (rf.Budget(macs=1 / 3), "budget:macs=0.3333333333333333"),
        (rf.Ranks({"a": 3}), None),
        (rf.Budget(drop=0.1, evaluate=len), None),
    ],
)
def test_a_policy_has_a_text_that_stands_for_it_alone(policy: Policy, text: str | None) -> None:
    assert text_of(policy, registry().policies) == text
    assert text is None or policy_from_text(text, registry().policies) == policy


class Plain:
    """A policy of a plugin that is no dataclass, and whose text has an equals sign."""

    name: ClassVar[str] = "plain"

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def from_text(cls, argument: str) -> Any:
        if not argument:
            raise ValueError("nothing given")
        return cls(argument)


def test_a_class_of_a_plugin_reads_its_text_itself() -> None:
    known: Any = {"plain": Plain}
    policy: Any = policy_from_text("plain:a=b", known)
    assert policy.text == "a=b"
    with pytest.raises(rf.RankfoldError, match=r"policy 'plain'.*nothing given"):
        policy_from_text("plain", known)


def test_a_registry_takes_text_for_any_policy() -> None:
    selection = registry().selection("ratio:1/2", None, (), {"a*": "ranks:3", "b": rf.VBMF()})
    assert selection.policy == rf.Ratio(0.5)
    assert selection.overrides == {"a*": rf.Ranks(3), "b": rf.VBMF()}
    with pytest.raises(rf.RankfoldError, match="overrides"):
        registry().selection("vbmf", None, (), [("a", "vbmf")])  # type: ignore[arg-type]


def test_a_checkpoint_is_planned_by_text(tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    save_file({"fc.weight": weight}, tmp_path / "in.safetensors")
    plan = rf.compress_checkpoint(tmp_path / "in.safetensors", tmp_path / "out", "ranks:8")
    assert plan["fc"].ranks == (8,)


@dataclass(frozen=True, eq=False)
class Awkward:
    """A policy of a plugin with a field that cannot be compared, and no equality of its own."""

    name: ClassVar[str] = "awkward"
    weights: Any = None

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    @classmethod
    def from_text(cls, argument: str) -> Any:
        return cls()


@pytest.mark.parametrize("weights", [None, np.ones(3)])
def test_a_policy_that_cannot_be_compared_has_no_text(weights: Any) -> None:
    known: Any = {"awkward": Awkward}
    policy: Any = Awkward(weights)
    assert text_of(policy, known) is None
