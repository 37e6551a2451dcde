"""Errors of code of others: none gets through but the user's own, and each is told in few words."""

import gc
import signal
from collections.abc import Callable
from functools import partial

import pytest

from rankfold.errors import RankfoldError, Refused
from rankfold.faults import LONGEST, contained, shown, told


class TextlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class ClasslessError(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise ValueError("no class")


class EndlessError(Exception):
    def __repr__(self) -> str:
        return repr(self)

    __str__ = __repr__


class NumberError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]

    __repr__ = __str__


class Text(str):
    def __getitem__(self, index: object) -> str:
        raise SystemExit("of a text")

    __iter__ = __len__ = split = __getitem__  # type: ignore[assignment]


class ExitingTextError(Exception):
    def __str__(self) -> str:
        return Text("gone")

    __repr__ = __str__


class Nameless(type):
    @property
    def __name__(cls) -> str:
        raise ValueError("no name")


class NamelessError(TextlessError, metaclass=Nameless):
    pass


class OfNoException(BaseException):
    pass


ERRORS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(5),
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(3),
    "MemoryError": lambda: MemoryError("one array too many"),
    "OfNoException": OfNoException,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [SystemExit(7)]),
    "RuntimeError": lambda: RuntimeError("x" * 1_000_000),
    "ValueError": lambda: ValueError("\x1b[2J of\na terminal"),
    "TextlessError": TextlessError,
    "ClasslessError": ClasslessError,
    "EndlessError": EndlessError,
    "NumberError": NumberError,
    "ExitingTextError": ExitingTextError,
    "NamelessError": NamelessError,
}


@pytest.mark.parametrize("becomes", [Refused, RankfoldError])
@pytest.mark.parametrize("name", ERRORS)
def test_whatever_code_raises_becomes_one_short_line(
    name: str, becomes: type[Refused] | type[RankfoldError]
) -> None:
    with pytest.raises(becomes) as raised, contained("a plugin", becomes):
        raise ERRORS[name]()
    text = str(raised.value)
    assert text.startswith("a plugin failed: ")
    assert len(text) < LONGEST + 50
    assert text.isprintable()


@pytest.mark.parametrize("name", ERRORS)
def test_the_words_on_an_error_name_its_class(name: str) -> None:
    text = told(ERRORS[name]())
    assert name in text
    assert text.isprintable()
    assert len(text) <= LONGEST + len("…")


def test_a_value_is_shown_in_one_line_that_is_cut() -> None:
    assert shown((1, "a\n")) == repr((1, "a\n"))
    assert shown(TextlessError()) == "TextlessError, whose text cannot be made"
    assert shown("x" * 90, longest=70) == "'" + 69 * "x" + "…"


class SilentRefusal(Refused):
    def __init__(self) -> None:
        pass


class SilentError(RankfoldError):
    def __str__(self) -> str:
        raise SystemExit("no text")


@pytest.mark.parametrize(
    "error", [SilentRefusal(), Refused("y" * 1_000_000), Refused(None)], ids=["none", "long", "odd"]
)
def test_a_refusal_without_a_proper_reason_gets_one(error: Refused) -> None:
    with pytest.raises(Refused) as raised, contained("a plugin", Refused):
        raise error
    assert isinstance(raised.value.reason, str)
    assert 0 < len(raised.value.reason) < LONGEST + 50


def test_an_error_of_ours_whose_text_cannot_be_made_gets_one() -> None:
    with pytest.raises(RankfoldError, match="SilentError"), contained("a plugin", Refused):
        raise SilentError


@pytest.mark.parametrize("error", [Refused("not mine"), RankfoldError("rank 70 of 64")], ids=str)
def test_what_is_said_in_our_words_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, contained("a plugin", Refused):
        raise error
    assert raised.value is error


def test_a_refusal_where_there_is_nothing_to_refuse_is_a_fault() -> None:
    words = pytest.raises(RankfoldError, match="policy failed: Refused")
    with words, contained("policy", RankfoldError):
        raise Refused("no layer of mine")


def test_the_interrupt_of_the_user_gets_through() -> None:
    with pytest.raises(KeyboardInterrupt), contained("a plugin", Refused):
        raise KeyboardInterrupt


class Handler:
    def __call__(self, *what: object) -> None:
        raise SystemExit("terminated")

    def method(self, *what: object) -> None:
        self()


def handle(code: str, *what: object) -> None:
    raise TimeoutError(code)


@pytest.mark.parametrize(
    "handler",
    [Handler(), Handler().method, partial(handle, "too late")],
    ids=["object", "method", "partial"],
)
def test_what_a_signal_handler_of_the_user_raises_gets_through(
    handler: Callable[..., None],
) -> None:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises((SystemExit, TimeoutError)), contained("a plugin", Refused):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_net_that_is_left_open_by_an_interrupt_is_silent() -> None:
    contained("a plugin", Refused).__enter__()
    gc.collect()
