"""What notebooks and prompts show of results: a line, and a table that is folded."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import rich.pretty
from tests.core.report.plans import EVIL, network

import rankfold as rf
from rankfold.calibration.moments import LayerMoments
from rankfold.report.templating import environment


def moments(layers: int = 12) -> rf.Moments:
    rng = np.random.default_rng(0)
    return rf.Moments(
        {
            f"layer{index}": LayerMoments(
                rng.random((1, 300, 300)), rng.random((1, 300)), None, 64, 1.0
            )
            for index in range(layers)
        },
        "outputs",
    )


OBJECTS = {
    "plan": network,
    "layer": lambda: network().layers[0],
    "compressed": lambda: rf.Compressed(np.zeros(10_000), network()),
    "moments": moments,
    "moments of a layer": lambda: moments()["layer0"],
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_repr_is_a_line_or_two(name: str) -> None:
    value = OBJECTS[name]()
    assert len(repr(value)) < 500
    assert len(rich.pretty.pretty_repr(value, expand_all=True)) < 800


def test_reprs_say_what_counts() -> None:
    assert repr(network()).startswith("Plan(Budget(macs=0.5): 17 of 21 layers replaced, parameters")
    assert repr(OBJECTS["compressed"]()).startswith(
        "Compressed(ndarray, Budget(macs=0.5): 17 of 21"
    )
    assert repr(network().layers[4]).startswith(
        "LayerPlan(path='blocks.1.layer1', reason='kept by the budget', params=(5120, 5120)"
    )
    assert repr(moments()) == (
        "Moments(12 layers: 'layer0', 'layer1', 'layer2', 'layer3', 'layer4' and 7 more; "
        "loss 'outputs')"
    )
    assert repr(moments()["layer0"]) == (
        "LayerMoments(inputs (1, 300, 300), no grads, of 64 examples)"
    )


@pytest.mark.parametrize("name", ["plan", "compressed", "moments"])
def test_notebooks_show_a_table_that_is_folded(name: str) -> None:
    shown = OBJECTS[name]()._repr_html_()
    assert shown.startswith("<details>\n<summary>")
    path = "layer3" if name == "moments" else "blocks.1.layer0"
    assert f">{path}</td>" in shown


def test_names_are_text_in_notebooks() -> None:
    shown = network(2, first=EVIL)._repr_html_()
    assert shown is not None
    assert "<img" not in shown
    assert "<script" not in shown
    assert "\x1b" not in shown


def test_without_the_template_engine_the_repr_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert network()._repr_html_() is None
    environment.cache_clear()
