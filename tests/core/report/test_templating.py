from __future__ import annotations

import sys

import pytest
from tests.core.report.plans import network

import rankfold as rf
from rankfold.report.page import rendered
from rankfold.report.templating import environment


def test_without_the_template_engine_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(rf.RankfoldError, match=r"pip install 'rankfold\[report\]'"):
        rendered(network(1))


def test_whatever_a_template_is_given_is_text() -> None:
    template = environment().from_string("<p>{{ name }}</p>")
    page = template.render(name="<script>{{ 7 * 7 }}</script>")
    assert page == "<p>&lt;script&gt;{{ 7 * 7 }}&lt;/script&gt;</p>"


def test_every_page_of_the_package_is_a_template() -> None:
    names = environment().list_templates()
    assert names
    for name in names:
        environment().get_template(name)
