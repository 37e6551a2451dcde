"""The model card: what the plan knows is in it, and no name in it is markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.core.report.plans import EVIL, network

import rankfold as rf
from rankfold.report.model_card import model_card


def test_it_says_what_was_done_and_asks_for_the_rest(tmp_path: Path) -> None:
    plan = network(12)
    text = plan.report(tmp_path / "README.md").read_text()
    assert text.startswith("---\ntags:\n- rankfold\n")
    assert "The model keeps" in text
    assert "base_model: NAME OF THE ORIGINAL MODEL" in text
    assert "SCORES OF THIS MODEL AND OF THE ORIGINAL" in text
    assert text.count("| Tucker-2 | 9, 7 | 33 % |") == len(plan.replaced) > 5
    assert "<html" not in text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


@pytest.mark.parametrize("name", [EVIL, "a|b`c`[x](http://y)*d*", "```\n# e"])
def test_no_name_in_it_is_markup(name: str) -> None:
    markdown = pytest.importorskip("markdown")
    plan = rf.Plan(
        layers=(rf.LayerPlan(path=name, method="svd", ranks=(3,), params=(90, 30)),), policy=name
    )
    parser = Tags()
    parser.feed(markdown.markdown(model_card(plan).split("---", 2)[2], extensions=["tables"]))
    allowed = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong"}
    assert parser.tags <= allowed | {"code", "pre"}
