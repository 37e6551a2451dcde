"""The demo, from training to a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.datasets import load_digits
from sklearn.utils import Bunch
from tests.core.cli.commands import Run


def test_the_demo_shows_a_table_and_writes_a_picture(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    few = Bunch(images=digits.images[:240], target=digits.target[:240])
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: few)
    monkeypatch.setattr("rankfold.adapters.timing.MODEL", 0.1)
    done = run("demo", "--epochs", "1", "-o", "[bold]shown", cwd=folder)
    assert done.returncode == 0, done.stderr
    for word in ("SVD + Tucker-2", "SVD + CP", "fine-tuned", "speed-up", "picture: [bold]shown/"):
        assert word in done.stdout
    assert (folder / "[bold]shown" / "demo.png").read_bytes().startswith(b"\x89PNG")
