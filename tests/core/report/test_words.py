from __future__ import annotations

import msgspec
from tests.core.report.plans import layer, network

from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.registry import registry
from rankfold.report.words import meanings, method_name, spectrum_meanings


def test_every_method_of_rankfold_has_a_name_for_readers() -> None:
    for method in registry().decompositions:
        assert method_name(method) != method
    assert method_name("tucker2_id") == "Tucker-2, interpolative"
    assert method_name("theirs") == "theirs"
    assert method_name("theirs_id") == "theirs_id"


def test_the_words_are_those_that_the_plan_takes() -> None:
    plain = network(3, informed=False)
    names = [name for name, _ in meanings(plain, informed=False)]
    assert names == ["Layer", "Tucker-2", "Rank", "Error", "Multiply-accumulates"]
    assert "Predicted, measured" in dict(meanings(plain, informed=True))
    bare = Plan(layers=(LayerPlan(path="a", reason="tied"),))
    assert [name for name, _ in meanings(bare, informed=False)] == ["Layer", "Rank", "Error"]


def test_an_interpolative_method_is_explained_beside_its_own() -> None:
    planned = msgspec.structs.replace(layer(0), method="tucker2_id")
    words = dict(meanings(Plan(layers=(planned,)), informed=False))
    assert words["Tucker-2, interpolative"].startswith("The same, with a first or last layer")
    assert list(words).index("Tucker-2") < list(words).index("Tucker-2, interpolative")


def test_spectra_are_explained_where_there_are_any() -> None:
    assert [name for name, _ in spectrum_meanings(network(1))] == ["Spectrum", "EVBMF", "Energy"]
    assert spectrum_meanings(Plan(layers=(LayerPlan(path="a"),))) == []
