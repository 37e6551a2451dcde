"""Calls from several threads: one after the other on a model, side by side on different ones."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.torch.conftest import state
from threadpoolctl import threadpool_info
from torch import nn

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.layers.blas_threads import limited
from rankfold.plugins.model_lock import exclusive
from rankfold.state.restoration import Lock, settled


class Meeting(nn.Module):
    """Calls a function whenever it runs."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self.function = [function]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.function[0]()
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return nn.Identity()


def network(function: Callable[[], object]) -> nn.Module:
    layers = nn.Linear(7, 11), Meeting(function), nn.BatchNorm1d(11), nn.Linear(11, 5)
    return nn.Sequential(*layers).train()


def outcome(compressed: rf.Compressed) -> dict[str, Any]:
    modules = dict(compressed.model.named_modules())
    return {
        "modes": {path: module.training for path, module in modules.items()},
        "trainable": all(p.requires_grad for p in compressed.model.parameters()),
        "hooks": sum(len(module._forward_hooks) for module in modules.values()),
        "forwards": sum("forward" in vars(module) for module in modules.values()),
        "replaced": [layer.path for layer in compressed.plan.replaced],
    }


@pytest.mark.parametrize("part", ["model", "wrapper", "layers"])
def test_a_call_waits_for_the_one_that_works_on_its_model_or_a_part_of_it(part: str) -> None:
    seconds: list[threading.Thread] = []
    results: list[rf.Compressed] = []

    def second() -> None:
        others = {"model": model, "wrapper": nn.Sequential(model), "layers": model[2:]}
        results.append(rf.compress(others[part], rf.Ratio(0.5)))

    def start() -> None:
        seconds.append(threading.Thread(target=second))
        seconds[-1].start()
        seconds[-1].join(0.02)
        assert seconds[-1].is_alive()

    model = network(start)
    x = torch.randn(16, 7)
    before = state(model)
    first = rf.compress(model, rf.Ratio(0.5), inputs=x[:2], calibration=[x])
    for thread in seconds:
        thread.join()
    assert len(results) == len(seconds) > 2
    second()
    assert all(outcome(result) == outcome(results[-1]) for result in results)
    assert outcome(first)["modes"] == {p: True for p, _ in first.model.named_modules()}
    assert state(model) == before


def test_calls_on_different_models_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=60)
    models = [network(both.wait) for _ in range(2)]
    before = nn.Module.__getattr__, nn.Module.__setattr__
    x = torch.randn(2, 7)
    with ThreadPoolExecutor(2) as pool:
        plans = list(
            pool.map(lambda model: rf.plan(model, rf.Ratio(0.5), inputs=x, include="*"), models)
        )
    assert [len(plan.replaced) for plan in plans] == [2, 2]
    assert (nn.Module.__getattr__, nn.Module.__setattr__) == before


def test_two_calls_that_wait_for_each_other_end_with_an_error() -> None:
    models = nn.Linear(3, 2), nn.Linear(5, 2)
    both = threading.Barrier(2, timeout=60)

    @exclusive("model")
    def inner(model: nn.Module) -> None:
        pass

    @exclusive("model")
    def outer(model: nn.Module, other: nn.Module) -> None:
        both.wait()
        inner(other)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(outer, *pair) for pair in (models, models[::-1])]
    errors = [future.exception() for future in futures]
    assert any(isinstance(error, RankfoldError) for error in errors)
    for model in models:
        inner(model)


def threads() -> list[int]:
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]


def test_a_limit_on_blas_lasts_until_the_last_of_the_calls_that_overlap() -> None:
    before = threads()
    first, second = limited(1), limited(1)
    first.__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        pool.submit(second.__exit__, None, None, None).result()
    assert threads() == before


def test_a_lock_that_an_interrupt_left_locked_is_free_for_other_threads() -> None:
    lock = Lock()
    left = lock.held()

    @settled
    def interrupted() -> None:
        left.__enter__()
        raise KeyboardInterrupt

    def held() -> bool:
        with lock.held():
            return True

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(held).result(timeout=60)


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        layers = nn.Conv2d(5, 13, 3), nn.Conv2d(13, 17, 3), nn.Flatten(), nn.Linear(17 * 4, 19)
        self.net, self.seconds = nn.Sequential(*layers), seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.net(x)


def test_two_traces_at_once_leave_no_trace() -> None:
    before = nn.Module.__getattr__
    shared = Slow(0.2).train()
    plans: list[rf.Plan] = []

    def work(target: nn.Module) -> None:
        plans.append(rf.plan(target, rf.Ratio(0.3), inputs=torch.zeros(1, 5, 6, 6), include="*"))

    threads = [threading.Thread(target=work, args=(m,)) for m in (shared, shared, Slow(0.1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__getattr__ is before
    assert shared.training
    assert [len(plan.replaced) for plan in plans] == [3, 3, 3]
