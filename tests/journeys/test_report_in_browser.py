"""The report in Chromium: nothing on the console, keys, order of reading, phone, dark, print."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.core.report.plans import EVIL, network, sensitivities

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@dataclass
class Opened:
    """A page that was opened, and what it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Within containers the sandbox of Chromium is not allowed to start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network().report(tmp_path_factory.mktemp("report") / "report.html")


def opened(browser: Any, file: Path, **options: Any) -> Opened:
    page = browser.new_context(**options).new_page()
    shown = Opened(page)
    page.on("console", lambda message: shown.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: shown.said.append(f"error: {error}"))
    page.on("request", lambda request: shown.asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('section .plot svg').length >= 4")
    return shown


@pytest.fixture
def shown(browser: Any, file: Path) -> Iterator[Opened]:
    shown = opened(browser, file)
    yield shown
    # Whatever a test does on the page: no error, no warning, and nothing asked of the network.
    assert shown.said == []
    assert {url for url in shown.asked if not url.startswith("data:")} == {file.as_uri()}
    shown.page.context.close()


def names(page: Any) -> list[str]:
    """The layers that are shown, from the top."""
    return page.eval_on_selector_all(
        "tbody:not([hidden]) .name", "names => names.map(name => name.textContent)"
    )


def test_all_charts_are_drawn(shown: Opened) -> None:
    for name in ("costs", "curve", "trials", "payoff"):
        assert shown.page.locator(f"#{name} svg path").count() > 0


def test_a_layer_opens_with_its_spectra_by_the_keyboard_alone(shown: Opened) -> None:
    page = shown.page
    page.locator("#find").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('tbody th button')"):
            break
    row = page.locator("tbody").first
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#details-0 svg').length === 2")
    assert row.locator("th button").get_attribute("aria-expanded") == "true"
    assert "Kept: 9" in row.inner_text()
    assert "rank 9" in row.locator("svg").first.text_content()
    page.keyboard.press("Enter")
    assert row.locator(".details").is_hidden()
    assert row.locator("th button").get_attribute("aria-expanded") == "false"


def test_tab_goes_through_the_page_from_the_top_to_the_end(shown: Opened) -> None:
    page = shown.page
    tops: list[float] = []
    place = "(e => e.getBoundingClientRect().top + scrollY)(document.activeElement)"
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        if not page.evaluate("document.activeElement.matches('.skip, thead *, .filter *')"):
            tops.append(page.evaluate(place))
    assert len(tops) > len(network().layers)
    assert tops == sorted(tops)


def test_a_reader_hears_charts_as_one_sentence_and_the_table_as_a_table(shown: Opened) -> None:
    tree = shown.page.locator("body").aria_snapshot()
    assert re.search(r'img "Bars of all layers in the model', tree)
    assert re.search(r'img "This plan is at 50 % of the multiply-accumulates', tree)
    assert "graphics-symbol" not in tree
    assert 'rowheader "blocks.0.layer0' in tree
    assert 'columnheader "Parameters"' in tree
    order = [
        tree.index(text)
        for text in (
            'heading "17 of 21',
            "What to look at",
            "The network, layer",
            'table "',
            "What the words mean",
            "Make it again",
        )
    ]
    assert order == sorted(order)


def test_sorting_by_a_column_turns_with_each_press(shown: Opened) -> None:
    page, plan = shown.page, network()
    measured = {layer.path: layer.measured for layer in plan.layers}
    head = page.locator("thead th", has_text="Error measured")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    known = [measured[name] for name in names(page) if measured[name] is not None]
    assert known == sorted(known, reverse=True)
    assert [measured[name] for name in names(page)][-4:] == [None] * 4
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    known = [measured[name] for name in names(page) if measured[name] is not None]
    assert known == sorted(known)
    assert [measured[name] for name in names(page)][-4:] == [None] * 4
    page.locator("thead th", has_text="Layer").first.locator("button").click()
    assert names(page) == [layer.path for layer in plan.layers]


def test_searching_and_filtering_leave_the_layers_that_fit(shown: Opened) -> None:
    page, plan = shown.page, network()
    page.locator("#find").fill("blocks.1 tucker")
    fitting = [
        layer.path for layer in plan.layers if "blocks.1" in layer.path and layer.method is not None
    ]
    assert names(page) == fitting
    assert page.locator("#shown").inner_text() == f"{len(fitting)} of 21 layers"
    page.locator("#find").fill("")
    page.locator("#show").select_option("kept")
    assert names(page) == [layer.path for layer in plan.layers if layer.method is None]
    page.locator("#find").fill("nothing like it")
    assert names(page) == []
    assert page.locator("#none").is_visible()


def test_a_layer_in_the_summary_leads_to_its_row(shown: Opened) -> None:
    page = shown.page
    page.locator("#show").select_option("kept")
    link = page.locator(".hints a").first
    name = link.inner_text()
    link.click()
    assert page.evaluate("document.activeElement.textContent") == name
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"


def test_a_piece_of_the_bar_leads_to_its_row(shown: Opened) -> None:
    page = shown.page
    page.locator("#costs svg path[aria-label], #costs svg .mark-rect path").nth(6).click()
    assert page.evaluate("document.activeElement.matches('tbody th button')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_paper(browser: Any, file: Path, scheme: str) -> None:
    shown = opened(browser, file, color_scheme=scheme)
    for selector in ("body", ".kind", "figcaption", "a", ".figures dt", "tbody th button"):
        assert shown.page.evaluate(CONTRAST, selector) >= 4.5, selector
    assert shown.said == []
    shown.page.context.close()


# The contrast of relative luminances of the text and the page, as WCAG 2 defines it.
CONTRAST = """selector => {
  const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const part = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const text = getComputedStyle(document.querySelector(selector)).color;
  const paper = getComputedStyle(document.body).backgroundColor;
  const [high, low] = [text, paper].map((c) => luminance(numbers(c))).sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}"""


def test_a_phone_shows_all_without_scrolling_sideways(browser: Any, file: Path) -> None:
    shown = opened(browser, file, **PHONE)
    page = shown.page
    page.locator("tbody th button").nth(1).click()
    page.wait_for_function("document.querySelectorAll('#details-1 svg').length === 2")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#sort").select_option(label="error of the output, measured")
    measured = {layer.path: layer.measured or 0.0 for layer in network().layers}
    assert names(page)[0] == max(measured, key=lambda path: measured[path])
    assert shown.said == []
    page.context.close()


def test_forced_colours_keep_shapes(browser: Any, file: Path) -> None:
    shown = opened(browser, file, forced_colors="active")
    assert shown.page.locator("#costs svg path[fill^='url']").count() > 0
    assert shown.said == []
    shown.page.context.close()


def pages(page: Any) -> int:
    """The number of sheets that a page takes in print."""
    pdf = page.pdf(format="A4", prefer_css_page_size=True)
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))


def test_it_prints_on_two_pages(shown: Opened) -> None:
    assert shown.page.locator("#print-all").count() == 0
    assert pages(shown.page) == 2


def test_of_many_layers_it_prints_the_dearest_unless_all_are_asked_for(
    browser: Any, tmp_path: Path
) -> None:
    shown = opened(browser, network(300).report(tmp_path / "report.html"))
    page = shown.page
    assert page.locator("tbody").nth(299).is_visible()
    assert page.locator(".on-paper").is_hidden()
    assert pages(page) == 2
    page.locator("#print-all").check()
    assert pages(page) > 4
    assert shown.said == []
    page.context.close()


def test_no_name_runs_or_shows_as_markup(browser: Any, tmp_path: Path) -> None:
    plan = network(6, first=EVIL)
    plan = msgspec.structs.replace(plan, policy=EVIL, call=EVIL, notes=(EVIL,))
    shown = opened(browser, plan.report(tmp_path / "report.html"))
    page = shown.page
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.locator("tbody th button").first.click()
    page.wait_for_function("document.querySelectorAll('#details-0 svg').length === 2")
    page.locator("#costs svg .mark-rect path").first.hover()
    page.wait_for_timeout(300)
    assert page.locator("img").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator("tbody .name").first.inner_text()
    assert shown.said == []
    page.context.close()


def test_without_scripts_the_table_is_whole(browser: Any, file: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(file.as_uri())
    assert page.locator("tbody").count() == len(network().layers)
    assert "Without JavaScript the charts" in page.inner_text("body")
    page.context.close()


def test_scores_of_single_layers_are_drawn(browser: Any, tmp_path: Path) -> None:
    plan = network()
    file = plan.report(tmp_path / "report.html", sensitivity=sensitivities(plan))
    shown = opened(browser, file)
    page = shown.page
    assert page.locator("#sensitivity svg path").count() > 0
    page.locator("tbody th button").first.click()
    page.wait_for_function("document.querySelectorAll('#details-0 .scores svg').length === 1")
    assert "0.928 with 50 % of its cost" in page.locator("#details-0").inner_text()
    assert shown.said == []
    page.context.close()
