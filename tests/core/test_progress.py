"""Progress on a terminal, in a notebook and in a log."""

import io
import logging
import sys
from importlib.metadata import version
from types import ModuleType
from typing import Any

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


class ZMQInteractiveShell:
    """Named as the shell of a notebook's kernel."""


class Display:
    """What a notebook's front end is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []

    def __call__(self, data: dict[str, str], *, raw: bool, display_id: bool) -> "Display":
        assert raw
        assert display_id
        self.told.append(data)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.told.append(data)


def in_shell(monkeypatch: pytest.MonkeyPatch, shell: Any) -> Display:
    display = Display()
    ipython, of_display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    of_display.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", of_display)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    return display


def test_a_notebook_shows_a_bar_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    display = in_shell(monkeypatch, ZMQInteractiveShell())
    monkeypatch.setattr("rankfold.progress._PAUSE", 0.0)
    with progress("planning", 3) as advance:
        for name in ("a", "<b>", "c\x1b"):
            advance(name)
    assert [data["text/plain"] for data in display.told] == [
        "planning 0/3",
        "planning 0/3 a",
        "planning 1/3 <b>",
        "planning 2/3 c\\x1b",
        "",
    ]
    assert "<progress value=1 max=3>" in display.told[2]["text/html"]
    assert "&lt;b&gt;" in display.told[2]["text/html"]


def test_a_notebook_is_not_told_of_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    display = in_shell(monkeypatch, ZMQInteractiveShell())
    monkeypatch.setattr("rankfold.progress._PAUSE", 1e9)
    with progress("planning", 1000) as advance:
        for index in range(1000):
            advance(str(index))
    assert len(display.told) == 3  # the empty bar, the first item, and nothing in the end


@pytest.mark.parametrize("shell", [None, object()])
def test_elsewhere_nothing_is_shown(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    display = in_shell(monkeypatch, shell)
    with progress("planning", 1) as advance:
        advance("a")
    assert display.told == []


def test_an_error_leaves_no_bar_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    display = in_shell(monkeypatch, ZMQInteractiveShell())

    def fail() -> None:
        with progress("planning", 2) as advance:
            advance("a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert display.told[-1] == {"text/plain": "", "text/html": ""}


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees, in the only place."""
    clock = [1000.0]
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr("rankfold.progress.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("rankfold.progress._Pace.last", 0.0)
    return clock


def test_a_log_has_a_line_every_few_seconds(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rankfold"), progress("planning", 12) as advance:
        for index in range(12):
            advance(f"layer\x1b{index}")
            seconds[0] += 2.0
    assert caplog.messages == [
        "planning 3/12 (25 %), 0:00:18 left: layer\\x1b3",
        "planning 6/12 (50 %), 0:00:12 left: layer\\x1b6",
        "planning 9/12 (75 %), 0:00:06 left: layer\\x1b9",
    ]


def test_a_line_of_steps_without_names_ends_with_the_time_left(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rankfold"), progress("training", 4) as advance:
        for _ in range(4):
            advance("")
            seconds[0] += 4.0
    assert caplog.messages == ["training 2/4 (50 %), 0:00:08 left"]


def test_a_bar_within_another_does_not_double_the_lines(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rankfold"), progress("outer", 9) as outer:
        for _ in range(9):
            outer("a")
            with progress("inner", 4) as inner:
                for _ in range(4):
                    inner("b")
                    seconds[0] += 2.0
    assert 0 < len(caplog.messages) <= 9 * 4 * 2.0 / 5.0


def test_short_work_and_a_log_that_nobody_asked_for_have_no_line(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with progress("planning", 9) as advance:
        for _ in range(9):
            advance("a")
            seconds[0] += 9.0
    with caplog.at_level(logging.INFO, "rankfold"), progress("planning", 9) as advance:
        for _ in range(9):
            advance("a")
            seconds[0] += 0.5
    assert caplog.messages == []
