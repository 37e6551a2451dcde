"""The progress bar on a terminal."""

import io
from importlib.metadata import version

import pytest

from rankfold.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_names_are_shown_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("planning", 2) as advance:
        for name in ("[/x]", "[bold]a\x1b]0;b\x07"):
            advance(name)
    assert r"[bold]a\x1b]0;b\x07" in terminal.getvalue()


@pytest.mark.skipif(
    int(version("rich").partition(".")[0]) < 15, reason="this rich shows one bar at a time"
)
def test_a_bar_within_another_is_a_line_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("planning", 1) as outer:
        outer("all")
        with progress("pricing", 2) as inner:
            inner("first")
            inner("second")
    shown = terminal.getvalue()
    assert shown.index("planning") < shown.index("pricing")
    assert "second" in shown
    assert "<" in shown
