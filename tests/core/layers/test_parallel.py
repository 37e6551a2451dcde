from __future__ import annotations

from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from rankfold.errors import RankfoldError, Refused, UnfinishedError
from rankfold.layers import parallel
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each, working
from rankfold.layers.settings import Settings
from rankfold.ops import Cost, Linear
from rankfold.plugins.registry import registry


def group(executor: Any = None, sides: tuple[int, ...] = (5, 7, 9)) -> LayerGroup:
    rng = np.random.default_rng(0)
    settings = Settings(registry().methods(("svd",)), "balanced", 0)
    ops = [Linear(rng.standard_normal((side, side + 3))) for side in sides]
    members = tuple(
        Layer((f"l{index}",), lambda op=op: op, settings)  # type: ignore[misc]  # a default binds it
        for index, op in enumerate(ops)
    )
    return LayerGroup(members, Cost(0, 0), Cost(1, 1), executor=executor)


def rank_one_error(layer: Layer, factor: float) -> float:
    return factor * layer.candidate("svd", (1,)).error


class Immediate(ThreadPoolExecutor):
    """Runs a task at once, here, and counts them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.tasks = 0

    def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
        self.tasks += 1
        future: Future[Any] = Future()
        future.set_result(function(*args, **named))
        return future


@pytest.mark.parametrize("batch", [1, 2**18])
def test_an_executor_gives_what_is_given_here_in_order(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_BATCH", batch)
    here = list(each(group(), rank_one_error, (1.0, 2.0, 3.0)))
    pool = Immediate()
    members = group(pool)
    assert list(each(members, rank_one_error, (1.0, 2.0, 3.0))) == here
    assert pool.tasks == (3 if batch == 1 else 1)
    # What was computed there is known here.
    assert all(layer.cache.candidates.keys() == {("svd", (1,))} for layer in members)


def test_no_layer_is_looked_at_before_it_is_asked_for() -> None:
    seen = []
    results = each(group(), lambda layer: seen.append(layer.path))
    next(results)
    assert seen == ["l0"]


@pytest.mark.parametrize("fault", [RankfoldError("no rank"), Refused("no layer")])
def test_faults_of_ours_go_through(fault: Exception) -> None:
    with pytest.raises(type(fault), match="no "), working("layer 'a'"):
        raise fault


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (BrokenExecutor("gone"), "layer 'a': a worker of the executor has died.*fewer workers"),
        (TypeError("cannot pickle"), "layer 'a': the executor failed: TypeError.*cannot pickle"),
    ],
)
def test_a_failure_of_the_executor_says_how_to_go_on(fault: Exception, message: str) -> None:
    with pytest.raises(UnfinishedError, match=message) as caught, working("layer 'a'"):
        raise fault
    assert caught.value.__cause__ is fault
    assert "the same call goes on from there" in str(caught.value)


def test_tasks_that_are_not_begun_are_cancelled_when_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel, "_BATCH", 1)
    futures: list[Future[Any]] = []

    class Waiting(Immediate):
        def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
            futures.append(Future())
            if len(futures) == 1:
                futures[0].set_exception(ValueError("first"))
            return futures[-1]

    with pytest.raises(UnfinishedError, match="layer 'l0'"):
        list(each(group(Waiting()), rank_one_error, (1.0, 2.0, 3.0)))
    assert all(future.cancelled() for future in futures[1:])
