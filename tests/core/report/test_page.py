"""The page as text: complete in itself, and nothing of a plan is markup in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.core.report.plans import EVIL, network

import rankfold as rf
from rankfold.report.page import rendered


class Parts(HTMLParser):
    """The tags of a page, the identifiers, and what stands in its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return rendered(network())


def test_it_loads_nothing_from_elsewhere(page: str) -> None:
    for tag, attributes in Parts(page).tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            target = attributes.get(name) or ""
            assert target.startswith(("#", "data:,")) or not target, (tag, target)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "@import" not in style
    assert "//" not in style


def test_its_policy_allows_its_own_scripts_and_no_others(page: str) -> None:
    (policy,) = (
        attributes["content"]
        for tag, attributes in Parts(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    assert hashes == re.findall(r"'sha256-([^']+)'", policy)


def test_no_name_is_markup() -> None:
    plan = network(3, first=EVIL)
    odd = msgspec.structs.replace(plan.layers[1], reason=EVIL, op=EVIL, method="svd", path="b")
    plan = msgspec.structs.replace(
        plan, policy=EVIL, call=EVIL, notes=(EVIL,), layers=(plan.layers[0], odd, plan.layers[2])
    )
    page = Parts(rendered(plan))
    plain = Parts(rendered(network(3)))
    assert [tag for tag, _ in page.tags if tag in ("img", "script")] == [
        tag for tag, _ in plain.tags if tag in ("img", "script")
    ]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{ 7 * 7 }}" in page.text  # told, and not computed
    assert r"\x1b[31m\u202e" in page.text
    assert "\u202e" not in rendered(plan)


def test_the_data_are_json_with_a_spectrum_for_each_unfolding(page: str) -> None:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    data = json.loads(match[1])
    assert [len(spectra) for spectra in data["spectra"]] == [
        len(layer.spectra) for layer in network().layers
    ]
    assert set(data["charts"]) == {"costs", "curve", "trials", "payoff"}


def test_identifiers_are_unique_and_labels_lead_somewhere(page: str) -> None:
    tags = Parts(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for name in ("aria-controls", "aria-labelledby", "aria-describedby"):
            if attributes.get(name):
                assert attributes[name] in ids
    assert all(a.get("aria-label") for _, a in tags if a.get("role") == "img")


def test_headings_leave_no_level_out(page: str) -> None:
    levels = [int(tag[1]) for tag, _ in Parts(page).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_layer_its_numbers_and_its_reason_are_there(page: str) -> None:
    text = " ".join(Parts(page).text.split())
    for layer in network().layers:
        assert layer.path in text
    for words in (
        "Tucker-2, ranks 9, 7",
        "kept by the budget",
        "0.200 0.020 0.030",
        "small = rf.compress(model, rf.Budget(macs=0.5), exclude='stem', inputs=x, "
        "calibration=batches)",
        "66 % measured, of the original's; predicted 61 %",
    ):
        assert words in text


def test_a_layer_without_a_spectrum_says_so() -> None:
    plan = rf.Plan(layers=(rf.LayerPlan(path="a", reason="tied", op="Linear"),))
    text = Parts(rendered(plan)).text
    assert "No spectrum: nothing had to compute one" in text
    assert "No curve: this policy decides on each layer by itself" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 0.0])
def test_numbers_that_are_none_leave_the_data_json(value: float) -> None:
    plan = network(5)
    odd = msgspec.structs.replace(plan.layers[0], error=value, predicted=value, measured=value)
    trials = (*plan.trials, msgspec.structs.replace(plan.trials[0], score=value))
    plan = msgspec.structs.replace(
        plan, layers=(odd, *plan.layers[1:]), loss=(0.1, value), trials=trials
    )
    page = rendered(plan)
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    json.loads(match[1], parse_constant=pytest.fail)
    assert max(map(len, Parts(page).text.split())) < 60


def test_it_is_written_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    assert network().report(file) == file
    assert file.read_text(encoding="utf-8") == rendered(network())


@pytest.mark.parametrize("name", ["", "missing/report.html", "null\0.html"])
def test_what_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(rf.RankfoldError, match="cannot write the report"):
        network(1).report(tmp_path / name)


@pytest.mark.parametrize("arguments", [(3,), (b"x.html",)])
def test_what_is_no_path_is_an_error(arguments: tuple[Any]) -> None:
    with pytest.raises(rf.RankfoldError, match="is not a path"):
        network().report(*arguments)


def test_scores_of_something_else_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(rf.RankfoldError, match="sensitivity: str"):
        network().report(tmp_path / "x.html", sensitivity="a")  # type: ignore[arg-type]


def test_three_hundred_layers_are_less_than_two_megabytes() -> None:
    assert len(rendered(network(300)).encode()) < 2_000_000
