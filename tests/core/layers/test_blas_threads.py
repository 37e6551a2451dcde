"""BLAS takes one thread for a small layer and its own choice for a large one at any time."""

from __future__ import annotations

import ctypes
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.interrupting import interrupted
from threadpoolctl import threadpool_info

from rankfold.decompose.svd import SVD
from rankfold.layers import blas_threads
from rankfold.layers.blas_threads import threads_for
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Cost, Linear
from rankfold.policies.budget import Budget
from rankfold.policies.energy import Energy
from rankfold.state.restoration import settled

SMALL, BIG = 24, 40


def numbers() -> set[int]:
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _small_and_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_threads, "LARGE", 32)


def layers() -> list[Layer]:
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((side, side + 7)) for side in (SMALL, BIG) * 6]
    return [
        Layer(
            (f"{i}",), lambda w=w: Linear(w), Settings({"svd": SVD}, "balanced", 0), Usage([(5,)])
        )
        for i, w in enumerate(weights)
    ]


@pytest.mark.parametrize("policy", [Energy(0.7), Budget(macs=0.5)], ids=repr)
@pytest.mark.parametrize("workers", [0, 3])
def test_each_layer_has_threads_by_its_own_size(
    policy: Energy | Budget, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = numbers()
    if 1 in free:
        pytest.skip("BLAS has one thread in any case")
    solved: list[tuple[int, set[int]]] = []

    def spied(name: str) -> None:
        usual = getattr(np.linalg, name)

        def solve(matrices: np.ndarray) -> object:
            before = numbers()
            time.sleep(0.002)  # for other threads to come in between
            solved.append((matrices.shape[-1], before | numbers()))
            return usual(matrices)

        monkeypatch.setattr(np.linalg, name, solve)

    spied("eigh")
    spied("eigvalsh")
    members = layers()
    total = sum((layer.costs.before for layer in members), Cost(0, 0))
    with ThreadPoolExecutor(workers or 1) as pool:
        group = LayerGroup(tuple(members), Cost(0, 0), total, executor=pool if workers else None)
        chosen = list(policy.allocate(group))
        for layer, choice in zip(members, chosen, strict=True):
            if choice.method is not None:
                layer.candidate(choice.method, choice.ranks)
    assert {order for order, _ in solved} == {SMALL, BIG}
    assert all(seen == ({1} if order == SMALL else free) for order, seen in solved)
    assert numbers() == free


def test_work_of_another_size_waits_its_turn_and_none_waits_for_ever() -> None:
    inside: list[int] = []
    mixed: list[set[int]] = []

    def work(order: int) -> None:
        with threads_for(order), threads_for(99):  # what is called within changes nothing
            inside.append(order)
            time.sleep(0.001)
            mixed.append(set(inside))
            inside.remove(order)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [10, 50, 11, 12, 51, 50, 10, 52] * 5, timeout=60))
    assert all(len({order > 32 for order in orders}) == 1 for orders in mixed)


def test_who_waits_is_woken_and_does_not_look_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    usual = blas_threads._Turns._is_next

    def is_next(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        return usual(*args)

    monkeypatch.setattr(blas_threads._Turns, "_is_next", is_next)
    monkeypatch.setattr(blas_threads, "_PATIENCE", 600.0)

    def enters(order: int) -> None:
        with threads_for(order):
            pass

    with ThreadPoolExecutor(3) as pool:
        with threads_for(10):
            waiting = [pool.submit(enters, order) for order in (50, 50, 12)]
            time.sleep(0.05)
        for task in waiting:
            task.result(timeout=60)
    # The first enters at once, and each of the three looks when it comes and when another leaves.
    assert looks <= 1 + 3 * 5


def test_an_interrupt_at_any_line_of_waiting_lets_the_others_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blas_threads, "_PATIENCE", 600.0)
    files = ("layers/blas_threads.py", "state/restoration.py", "threading.py")
    free = numbers()
    entered, leave = threading.Event(), threading.Event()

    def enters(order: int, *, until: threading.Event | None = None) -> None:
        with threads_for(order):
            entered.set()
            if until is not None:
                until.wait(60)

    @settled
    def waits() -> None:
        with threads_for(50):
            pass

    def run(*lines: int) -> int:
        entered.clear()
        leave.clear()
        with ThreadPoolExecutor(3) as pool:
            holder = pool.submit(enters, 10, until=leave)
            assert entered.wait(60)
            threading.Timer(0.005, leave.set).start()
            ran = interrupted(waits, files, *lines)
            leave.set()
            for task in (holder, pool.submit(enters, 51), pool.submit(enters, 11)):
                task.result(timeout=60)
        return ran

    for line in np.unique(np.linspace(1, run(), 60).astype(int)):
        run(int(line))
    assert not blas_threads._turns._users
    assert numbers() == free


def test_an_exception_set_by_another_thread_reaches_one_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blas_threads, "_PATIENCE", 0.01)
    waiting = threading.Event()

    def enters() -> None:
        waiting.set()
        with threads_for(50):
            raise AssertionError("entered")

    with ThreadPoolExecutor(1) as pool, threads_for(10):
        task = pool.submit(enters)
        assert waiting.wait(60)
        (thread,) = (t.ident for t in pool._threads)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
        )
        assert isinstance(task.exception(timeout=60), KeyboardInterrupt)
    assert not blas_threads._turns._users


def test_an_error_lets_the_others_in() -> None:
    with pytest.raises(ValueError, match="within"), threads_for(10):
        raise ValueError("within")
    entered = threading.Event()

    def work() -> None:
        with threads_for(50):
            entered.set()

    threading.Thread(target=work).start()
    assert entered.wait(30)
