"""How long the report of a large network takes, and how large it is; and the pictures in its docs.

    python -m tests.benchmarks.report
    python -m tests.benchmarks.report --pictures docs/how-to/report

The first prints the CPU seconds of writing the page of 300 layers, each with two spectra, in a
process that has written none before and once more, and the size of the page. The second trains a
residual network on scikit-learn's digits, lets `Budget(drop=1)` compress it, and takes pictures of
the report in Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.core.report.plans import network

_WIDTH = 1100
_PHONE = 390


def measure() -> None:
    """Print seconds and bytes."""
    plan = network(300)
    with tempfile.TemporaryDirectory() as folder:
        for when in ("first", "second"):
            start = time.process_time()
            file = plan.report(Path(folder) / "report.html")
            seconds = time.process_time() - start
            print(f"{when}: {seconds:.2f} s of CPU, {file.stat().st_size / 1e6:.2f} MB")


def pictures(folder: Path) -> None:
    """Take the pictures of the docs.

    Args:
        folder: to write them into.
    """
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        page_file = _digits().report(Path(work) / "report.html")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )

        def opened(**options: Any) -> Any:
            page = browser.new_context(**options).new_page()
            page.goto(page_file.as_uri())
            page.wait_for_function("document.querySelectorAll('section .plot svg').length >= 4")
            return page

        page = opened(viewport={"width": _WIDTH, "height": 1120})
        page.screenshot(path=folder / "page.png")
        page.locator("tbody.replaced th button").nth(6).click()
        page.wait_for_timeout(500)
        box = page.locator("tbody", has=page.locator("[aria-expanded=true]")).bounding_box()
        assert box is not None
        page.screenshot(
            path=folder / "layer.png",
            full_page=True,
            clip={**box, "x": 0, "width": _WIDTH, "y": box["y"] + page.evaluate("scrollY")},
        )
        dark = opened(viewport={"width": _PHONE, "height": 844}, color_scheme="dark")
        dark.evaluate("scrollTo({top: 620, behavior: 'instant'})")
        dark.screenshot(path=folder / "phone.png")
        browser.close()


def _digits() -> Any:
    """Return the plan of a residual network for digits."""
    import torch
    from tests.benchmarks.accuracy.data import digits
    from tests.benchmarks.accuracy.networks import ResNet
    from tests.benchmarks.accuracy.training import accuracy, train

    import rankfold as rf

    torch.manual_seed(0)
    data, model = digits(), ResNet(10)
    train(model, data, epochs=12, rate=3e-3, seed=0)
    policy = rf.Budget(drop=1.0, evaluate=partial(accuracy, data=data))
    small = rf.compress(
        model, policy, inputs=data.test[0][:1], calibration=data.calibration(256, 0)
    )
    return small.plan


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    pictures(arguments.pictures) if arguments.pictures else measure()
