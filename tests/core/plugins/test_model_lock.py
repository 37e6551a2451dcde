from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from rankfold.plugins.model_lock import exclusive


class Parts:
    """An adapter whose models are lists of their parts, and that counts what it puts back."""

    def __init__(self) -> None:
        self.put_back = 0

    def parts(self, model: list[object]) -> list[object]:
        return [model, *model]

    def thread_state(self) -> Callable[[], object]:
        def back() -> None:
            self.put_back += 1

        return back


class Holder:
    def __init__(self, model: list[object]) -> None:
        self.model = model


@exclusive("self.model")
def holds(self: Holder, work: Callable[[], object], adapter: Parts) -> object:
    return work()


@exclusive("model")
def works(model: list[object], work: Callable[[], object], adapter: Parts) -> object:
    return work()


def waits(model: list[object], other: list[object]) -> bool:
    """Return whether a call on one model waits for that on another one."""
    entered, leave = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(works, model, lambda: entered.set() or leave.wait(60), Parts())
        assert entered.wait(60)
        second = pool.submit(works, other, lambda: leave.is_set(), Parts())
        if not leave.wait(0.02) and second.done():
            leave.set()
            return bool(second.result())
        leave.set()
        first.result(60)
        return bool(second.result(60))


def test_calls_that_have_a_part_in_common_take_turns() -> None:
    shared, mine, yours = Holder([]), Holder([]), Holder([])
    assert waits([shared, mine], [shared, yours])
    assert not waits([mine], [yours])


def test_a_call_within_a_call_of_the_same_thread_goes_on() -> None:
    model: list[object] = []
    adapter = Parts()
    assert works(model, lambda: works(model, lambda: 3, adapter), adapter) == 3
    assert adapter.put_back == 2


def test_the_state_of_the_thread_is_put_back_and_the_model_free_after_an_error() -> None:
    adapter, model = Parts(), [object()]

    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        works(model, fails, adapter)
    assert adapter.put_back == 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(works, model, lambda: 5, adapter).result(60) == 5


def test_a_model_may_be_an_attribute_of_an_argument() -> None:
    adapter = Parts()
    assert holds(Holder([object()]), lambda: 7, adapter) == 7
    assert adapter.put_back == 1


def test_wrong_arguments_are_told_by_the_function_itself() -> None:
    with pytest.raises(TypeError, match=r"works\(\) missing 2 required"):
        works([])  # type: ignore[call-arg]  # on purpose


def test_what_no_adapter_knows_is_taken_as_one_part() -> None:
    @exclusive("model")
    def plain(model: object) -> object:
        return model

    model = object()
    assert plain(model) is model
