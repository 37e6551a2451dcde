"""Signals that end a process, as exceptions: what is under way is tidied up first."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from types import FrameType

_ENDING = ("SIGTERM", "SIGHUP")


class Terminated(BaseException):
    """A signal to end.

    Attributes:
        code: that the process ends with, as a shell has it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def end_in_order() -> None:
    """Make the signals raise `Terminated`, unless they are ignored, as under nohup."""
    for name in _ENDING:
        # Windows has no SIGHUP. A handler that is there already is somebody's who embeds this in a
        # program.
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    for child in multiprocessing.active_children():
        if child.pid is not None:  # unlike Ctrl-C in a terminal the signal has not reached them
            with suppress(OSError):
                os.kill(child.pid, signal.SIGINT)
    raise Terminated(number)
