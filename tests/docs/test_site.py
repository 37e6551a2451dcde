"""The site opens from a folder, in a browser without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_page_opens_without_a_network_and_without_an_error(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    subprocess.run(command, cwd=ROOT, check=True)
    # What a server shows for addresses that are not there has addresses from its root.
    pages = sorted({*site.rglob("*.html")} - {site / "404.html"})
    assert len(pages) > 40
    faults: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        for file in pages:
            page = context.new_page()
            page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("request", lambda request: _note_foreign(faults, request.url))
            page.goto(file.as_uri())
            for image in page.locator("article img").all():
                assert image.evaluate("image => image.naturalWidth") > 0, file
            page.close()
        page = context.new_page()
        page.goto((site / "index.html").as_uri())
        page.locator("[data-md-component=search-query]").fill("Tucker")
        page.locator(".md-search-result__item").first.wait_for()
        browser.close()
    assert faults == []


def _note_foreign(faults: list[str], address: str) -> None:
    if not address.startswith(("file:", "data:", "blob:", "about:")):
        faults.append(f"asks for {address}")
