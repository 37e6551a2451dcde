from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from rankfold.cli.signals import Terminated, end_in_order


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_exception_with_the_code_of_a_shell(number: signal.Signals) -> None:
    end_in_order()
    with pytest.raises(Terminated, match=number.name) as caught:
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert not isinstance(caught.value, Exception)  # what catches errors does not keep it


def test_a_second_signal_ends_the_process_at_once() -> None:
    end_in_order()
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_is_ignored_or_handled_already_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    theirs: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: theirs.append(number))
    end_in_order()
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)
    assert theirs == [signal.SIGTERM]
