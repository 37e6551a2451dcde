"""Interrupts at chosen lines, and at random times."""

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

_ROOT = Path(__file__).parents[1]
_SOURCES = [str(file) for root in ("core", "backends") for file in (_ROOT / root).rglob("*.py")]
_SOURCES.append(threading.__file__)


def interrupted(work: Callable[[], object], files: tuple[str, ...], *lines: int) -> int:
    """Runs a function and interrupts it as some lines of some files are about to run.

    Args:
        work: the function.
        files: the ends of the names of the files.
        lines: the numbers of the interrupts, counted over all lines run in these files.

    Returns:
        How many lines were run.
    """
    for file in files:
        assert any(known.endswith(file) for known in _SOURCES), f"no source file ends with {file!r}"
    count = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count in lines:
                raise KeyboardInterrupt
        return local

    def tracer(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename.endswith(files) else None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count


def interrupted_after(work: Callable[[], object], seconds: float) -> bool:
    """Runs a function and interrupts it once, by a signal; whether that came before its end."""

    def raising(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raising)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            work()
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        except KeyboardInterrupt:
            return True
    finally:
        signal.signal(signal.SIGALRM, before)
    return False
