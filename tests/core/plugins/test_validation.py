"""What a plugin declares is checked before any of it is used."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest

import rankfold as rf
from rankfold.decompose.channel_svd import ChannelSVD
from rankfold.decompose.svd import SVD
from rankfold.plugins.hookspecs import (
    API,
    AdapterSpec,
    FileFormat,
    LayerRule,
    ModelFolder,
    ParameterRule,
    hookimpl,
)
from rankfold.plugins.validation import Declarations, check_api, check_marked


class Named:
    """A decomposition in everything but its name."""

    def __init__(self, name: object) -> None:
        self.name = name

    def __getattr__(self, part: str) -> object:
        return getattr(SVD, part)


def declared(hook: str, *items: object) -> Declarations:
    return Declarations.of(lambda name: items if name == f"rankfold_{hook}" else ())


FOLDER = ModelFolder("lib", ("a:B",), ("kind",), "model", "a:s", "a:b", "a:c", "a:r", "a:n")


def test_a_plugin_that_says_neither_yes_nor_no_is_refused() -> None:
    class Vague(ChannelSVD):
        multilinear_costs = "sometimes"  # type: ignore[assignment]  # what is tested

    with pytest.raises(TypeError, match="multilinear_costs is 'sometimes'; give a bool"):
        Declarations.of(lambda hook: [Vague()] if hook == "rankfold_decompositions" else [])


def test_a_plugin_that_interpolates_no_method_by_its_name_is_refused() -> None:
    class Vague(ChannelSVD):
        interpolates = True

    with pytest.raises(TypeError, match="interpolates is no text; give the name of a method"):
        Declarations.of(lambda hook: [Vague()] if hook == "rankfold_decompositions" else [])


def test_everything_is_collected_by_its_name_and_told_in_words() -> None:
    adapter = AdapterSpec("frame", ("a:B",), "a:C")
    rules = (LayerRule("frame", "a:B", "c:d"), ParameterRule("frame", "a:*", ("w",)))
    items = {
        "rankfold_decompositions": [Named("halves")],
        "rankfold_policies": [rf.VBMF],
        "rankfold_adapters": [adapter],
        "rankfold_model_folders": [FOLDER],
        "rankfold_layer_rules": rules,
    }
    everything = Declarations.of(lambda name: iter(items[name]))
    assert list(everything.decompositions) == ["halves"]
    assert everything.policies == {"vbmf": rf.VBMF}
    assert everything.adapters == {"frame": adapter}
    assert everything.model_folders == {"lib": FOLDER}
    assert (everything.rules, everything.parameter_rules) == ([rules[0]], [rules[1]])
    assert everything.words == [
        "decomposition halves",
        "policy vbmf",
        "adapter frame",
        "layer rule a:B",
        "parameter rule a:*",
        "model folder lib",
    ]


@pytest.mark.parametrize(
    ("hook", "item", "message"),
    [
        ("decompositions", object(), "has no method 'refuse'"),
        ("decompositions", Named("a\x1bb"), r"has the name 'a\\x1bb'; give it a word"),
        ("policies", object, "has no method 'allocate'"),
        ("layer_rules", object(), "layer, parameter or tensor rule .* has no method 'recognise'"),
        ("layer_rules", LayerRule("a", "a.B", "c:d"), "'a.B' is not of the form 'module:name'"),
        ("layer_rules", LayerRule("a", "a:B", "c:d", ":e"), "':e' is not of the form"),
        ("layer_rules", ParameterRule("a", "a:B", ("w", "")), "give its names as a tuple"),
        ("adapters", "torch", "'torch' is not an AdapterSpec"),
        ("adapters", AdapterSpec("a", ("B",), "a:C"), "'B' is not of the form"),
        ("adapters", AdapterSpec("a", (), "a:C", install=3), "install is no text"),  # type: ignore[arg-type]
        ("adapters", AdapterSpec("a", (), "a:C", wrapper_parts=("a.b",)), "no tuple of parts"),
        (
            "adapters",
            AdapterSpec("a", (), "a:C", (FileFormat("a", (".a",), (), "a:b", "", marker="M"),)),
            "a marker is for folders",
        ),
        ("model_folders", 3, "3 is not a ModelFolder"),
        ("model_folders", replace(FOLDER, settings=()), "name entries of config.json in a tuple"),
        ("model_folders", replace(FOLDER, weights="a.b"), "'a.b' is no start of file names"),
    ],
)
def test_what_is_not_what_it_is_declared_to_be_is_named(
    hook: str, item: object, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        declared(hook, item)


def test_a_name_stands_once() -> None:
    with pytest.raises(ValueError, match="decomposition 'a' is declared twice"):
        declared("decompositions", Named("a"), Named("a"))


@pytest.mark.parametrize("stated", [None, "1.0", (1,), (2, 0), (API[0], API[1] + 1)])
def test_another_contract_is_refused_with_ours(stated: object) -> None:
    module = types.ModuleType("plugin")
    vars(module)["RANKFOLD_API"] = stated
    with pytest.raises(TypeError, match=rf"RANKFOLD_API is .*\({API[0]}, {API[1]}\)"):
        check_api(module)


def test_contracts_of_earlier_minors_are_kept() -> None:
    module = types.ModuleType("plugin")
    for minor in range(API[1] + 1):
        vars(module)["RANKFOLD_API"] = (API[0], minor)
        check_api(module)


def test_a_hook_without_its_mark_is_named() -> None:
    module = types.ModuleType("plugin")
    vars(module).update(rankfold_policies=hookimpl(lambda: ()), rankfold_word="no function")
    check_marked(module)
    vars(module)["rankfold_adapters"] = lambda: ()
    with pytest.raises(TypeError, match="'rankfold_adapters' is not marked"):
        check_marked(module)
