"""Errors of code that is not rankfold's: one net for all of them, and few safe words for each.

A plugin may raise anything: `SystemExit`, a `BaseException` of its own, an error whose text cannot
be made or has a million letters. Wherever such code is called, it is called within `contained`.

What the user raises gets through, it is no fault of the code that it interrupts: Ctrl-C, and what a
signal handler of theirs raises. `MemoryError` does not: it comes of one array that is too large, of
which nothing has been taken, and the other layers are smaller.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import CodeType

from rankfold.errors import RankfoldError, Refused

LONGEST = 500
"""Letters of a foreign text in a reason or a message: more than a line, less than a page."""
_LONGEST_OF_OURS = 4 * LONGEST


def contained(who: str, becomes: type[RankfoldError] | type[Refused]) -> _Net:
    """Run code of others; what it raises becomes one of rankfold's errors.

    `RankfoldError`, and `Refused` where a fault becomes one, go through as they are: such code is
    meant to speak in these.

    Args:
        who: what runs, as the error is to name it.
        becomes: `Refused` where a fault costs one layer, `RankfoldError` where it ends the call.

    Raises:
        RankfoldError: the code raised it, or another error that becomes one.
        Refused: the same.
    """
    return _Net(who, becomes)


class _Net(AbstractContextManager[None, None]):
    """Context manager that `contained` gives.

    No generator: one that an interrupt leaves open is closed by a `GeneratorExit`, which would be
    taken for an error of the code.
    """

    def __init__(self, who: str, becomes: type[RankfoldError] | type[Refused]) -> None:
        self._who = who
        self._becomes = becomes

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        # By the type and not by `isinstance`, which reads `__class__`: an error of others may
        # define it.
        ours = RankfoldError if issubclass(type(error), RankfoldError) else self._becomes
        if issubclass(type(error), ours):
            # It goes through as it is, unless it cannot be told: then its class stays and its text
            # is made anew.
            if not _is_clear(error):
                raise ours(told(error)) from error
        elif not is_users(error):
            raise ours(f"{self._who} failed: {shown(error)}") from error


def of_adapter(adapter: object) -> AbstractContextManager[None, None]:
    """Run what an adapter does to a whole model: its fault ends the call."""
    return contained(f"adapter {type(adapter).__name__}", RankfoldError)


def is_users(error: BaseException) -> bool:
    """Return whether an error is the user's, of Ctrl-C or a signal handler, not of the code run."""
    if issubclass(type(error), KeyboardInterrupt):
        return True
    # What a handler raises is of any class, but the handler's code is among the frames it came
    # through.
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def let_through(error: BaseException) -> None:
    """Raise an error of the user again: for whoever catches all that a model raises."""
    if is_users(error):
        raise error


def told(error: BaseException) -> str:
    """Return the class and the text of an error, in one short line."""
    return _safe(lambda: f"{type(error).__name__}: {error!s}", error, LONGEST)


def shown(value: object, longest: int = LONGEST) -> str:
    """Return the repr of a value, in one short line."""
    return _safe(lambda: repr(value), value, longest)


def short(text: str, longest: int = LONGEST) -> str:
    """Return a text in one line, cut where it is long, with nothing that a terminal would obey."""
    # Cut before anything else is done to it: a text of a million letters would take long to clean.
    line = " ".join(text[: 2 * longest].split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    cut = len(line) > longest or len(text) > 2 * longest
    return f"{line[:longest]}…" if cut else line


def _safe(words: Callable[[], str], value: object, longest: int) -> str:
    """Return a text that code of others makes, or the class of the value if that fails."""
    try:
        return short(str.__str__(words()), longest)  # a plain one, where it is of a subclass
    except BaseException as error:
        if is_users(error):
            raise
        kind: str = type.__dict__["__name__"].__get__(type(value))  # whatever its metaclass says
        return f"{kind[:longest]}, whose text cannot be made"


def _is_clear(error: BaseException) -> bool:
    """Return whether an error that code of others raised has a text, and not an endless one."""
    try:
        text = error.reason if isinstance(error, Refused) else str(error)
        return type(text) is str and len(text) <= _LONGEST_OF_OURS
    except BaseException as other:
        if is_users(other):
            raise
        return False


def _code(handler: object) -> CodeType | None:
    """Return the code of a function, a method, a partial or an object that can be called."""
    if isinstance(handler, signal.Handlers):
        return None
    # A partial has its function in `func`, a method in `__func__`, and a partial may hold a method.
    for name in ("func", "__func__"):
        handler = getattr(handler, name, handler)
    code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


def is_ours(plugin: object) -> bool:
    """Return whether the code of a plugin is rankfold's own, which works on copies."""
    return type(plugin).__module__.startswith("rankfold.")
