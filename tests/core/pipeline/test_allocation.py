from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.framework import Dense, Model
from tests.core.numpy_models import Gathers, kernel, model, session_of, task_of

import rankfold as rf
from rankfold.errors import Infeasible, RankfoldError
from rankfold.layers.layer import Layer
from rankfold.pipeline.allocation import allocate, named
from rankfold.pipeline.calibrate import Calibrated, calibrate
from rankfold.pipeline.session import open_session, settings_of
from rankfold.plan.tradeoff import Tradeoff
from rankfold.plugins import Allocation, Choice

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


def carried_out(layer: Layer, choice: Choice) -> Choice:
    return choice


def choices_of(task: Any) -> dict[str, Choice]:
    return dict(allocate(task, carried_out).results)


@dataclass
class Chooses:
    """A policy that gives what a function of the layers gives."""

    allocate: Any
    name: ClassVar[str] = "chooses"


def test_each_layer_is_decided_on_by_its_own_policy_the_main_one_last() -> None:
    session = session_of(model(40, 30, 20, 10), inputs=X)
    asked: list[str] = []

    def by(name: str) -> Any:
        def choose(layers: Any) -> Iterator[Choice]:
            for layer in layers:
                asked.append(f"{name} {layer.path}")
                yield Choice("svd", (2,), name)

        return Chooses(choose)

    task = task_of(session, by("main"), exclude="0", overrides={"2": by("other")})
    choices = choices_of(task)
    assert choices["0"].reason == "excluded by '0'"
    assert (choices["1"].reason, choices["2"].reason) == ("main", "other")
    assert asked == ["other 2", "main 1"]


def test_what_is_decided_on_others_is_the_cost_around_a_group() -> None:
    session = session_of(model(40, 30, 20, 10))
    seen: dict[str, Any] = {}

    @dataclass
    class Whole:
        name: ClassVar[str] = "whole"
        judges: ClassVar[str] = "model"

        def allocate_model(self, layers: Any) -> Allocation:
            seen["elsewhere"] = layers.cost_elsewhere.params
            seen["original"] = layers.original_cost.params
            return Allocation([Choice(None, reason="kept") for _ in layers], ("a note",))

        def allocate(self, layers: Any) -> Any:
            raise AssertionError("allocate_model is asked")

    allocated = allocate(task_of(session, Whole(), overrides={"0": rf.Ranks(3)}), carried_out)
    assert seen == {"elsewhere": 3 * 70, "original": 40 * 30 + 30 * 20 + 20 * 10}
    assert allocated.notes == ("a note",)


def test_a_layer_is_carried_out_before_the_next_one_is_decided_on() -> None:
    order: list[str] = []

    def choose(layers: Any) -> Iterator[Choice]:
        for layer in layers:
            order.append(f"decide {layer.path}")
            yield Choice("svd", (2,))

    task = task_of(session_of(model(40, 30, 20)), Chooses(choose), include="*")
    allocate(task, lambda layer, choice: order.append(f"do {layer.path}"))
    assert order == ["decide 0", "do 0", "decide 1", "do 1"]


def test_a_layer_is_let_go_of_when_it_is_carried_out() -> None:
    reads: list[str] = []

    class Counting(NumpyAdapter):
        def read(self, network: Any, path: str) -> Any:
            reads.append(path)
            return super().read(network, path)

    task = task_of(session_of(model(40, 30, 20), adapter=Counting()), rf.Ranks(3))
    allocate(task, lambda layer, choice: layer.candidate("svd", choice.ranks))
    for path, layer in task.layers.layers.items():
        reads.clear()
        assert layer.op is not None
        assert reads == [path]
        assert not layer.cache.candidates


def test_layers_that_are_barred_or_have_no_moments_are_not_asked_about() -> None:
    session = session_of(model(40, 30, 20, 10), adapter=Gathers())
    calibrated = calibrate(session, [X], None, None)
    assert calibrated.moments is not None
    moments = rf.Moments({path: calibrated.moments[path] for path in ("0", "2")})
    known = Calibrated(moments=moments)
    task = task_of(session, rf.Ranks(2), calibrated=known, barred={"0": "cannot be built"})
    choices = choices_of(task)
    assert choices["0"].reason == "cannot be built"
    assert choices["1"].reason.startswith("it has no moments")
    assert choices["2"].method == "svd"


def test_a_layer_that_cannot_be_read_is_settled_with_its_reason() -> None:
    tied = kernel(30, 30)
    network = Model([Dense(kernel(40, 30)), Dense(tied), Dense(tied)])
    task = task_of(session_of(network), rf.Ranks(2), exclude="2")
    settled = allocate(task, carried_out).settled
    assert settled["1"].reason == "tied: its kernel is also that of '2'"
    assert settled["2"].reason == "excluded by '2'"


def test_what_cannot_be_kept_names_the_layers_that_no_policy_can_be_asked_about() -> None:
    tied = kernel(30, 30)
    network = Model([Dense(kernel(40, 30)), Dense(tied), Dense(tied)])
    with pytest.raises(Infeasible, match=r"not among these layers are '1' \(tied: .*\), '2'"):
        allocate(task_of(session_of(network), rf.Budget(params=0.01)), carried_out)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([Choice("svd", (2,))], r"layer '1': policy .* gave None for it; a policy yields one"),
        (["svd", "svd"], "layer '0': policy .* gave 'svd' for it"),
        ([Choice(3, ()), None], "its method and its reason are texts"),  # type: ignore[arg-type]
        ([Choice("svd", (2.5,)), None], "policy .*float"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_choice_is_a_fault_of_the_policy(choices: Any, message: str) -> None:
    task = task_of(session_of(model(40, 30, 20)), Chooses(lambda layers: choices), include="*")
    with pytest.raises(RankfoldError, match=message):
        allocate(task, carried_out)


def test_a_choice_without_a_reason_gets_one_and_ranks_are_ints() -> None:
    chosen = [Choice(None), Choice("svd", (np.int64(2),))]  # type: ignore[arg-type]
    task = task_of(session_of(model(40, 30, 20)), Chooses(lambda layers: chosen), include="*")
    choices = choices_of(task)
    assert choices["0"].reason == "left alone by its policy, without a reason"
    assert choices["1"].ranks == (2,)
    assert type(choices["1"].ranks[0]) is int


def test_a_curve_that_is_none_is_refused() -> None:
    @dataclass
    class Curved:
        name: ClassVar[str] = "curved"

        def allocate_model(self, layers: Any) -> Allocation:
            curve = Tradeoff(resource="params", measure="error", points=(), plan=(math.nan, 0.0))
            return Allocation([Choice(None, reason="left")], tradeoff=curve)

        def allocate(self, layers: Any) -> Any:
            raise AssertionError("allocate_model is asked")

    with pytest.raises(RankfoldError, match=r"tradeoff .*; give a Tradeoff of finite numbers"):
        allocate(task_of(session_of(model(40, 30)), Curved()), carried_out)


def test_choices_for_a_whole_model_are_decomposed_on_the_executor() -> None:
    threads = ThreadPoolExecutor(1)
    session = open_session(
        model(40, 30, 20), None, settings_of("svd", "balanced", 0, threads), NumpyAdapter()
    )
    decomposed: list[bool] = []

    def carry_out(layer: Layer, choice: Choice) -> None:
        decomposed.append(
            choice.method is None or (choice.method, choice.ranks) in layer.cache.candidates
        )

    with threads:
        allocate(task_of(session, rf.Budget(params=0.5)), carry_out)
    assert decomposed == [True, True]


def test_a_policy_is_named_by_its_repr() -> None:
    assert named(rf.Energy(0.9)) == "Energy(share=0.9)"


@dataclass
class Timed:
    """Predicts times."""

    seconds: Any
    notes: Any = ()
    name: ClassVar[str] = "timed"
    judges: ClassVar[str] = "model"

    def allocate_model(self, layers: Any) -> Allocation:
        return Allocation([Choice(None, reason="left") for _ in layers], self.notes, self.seconds)

    def allocate(self, layers: Any) -> Any:
        raise AssertionError("allocate_model is asked")

    @classmethod
    def from_text(cls, argument: str) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    "seconds", [(0.0, 0.0), (float("nan"), 1.0), (1.0, float("inf")), (1.0, -1.0), (1e-320, 1e300)]
)
def test_times_that_are_none_are_refused(seconds: Any) -> None:
    with pytest.raises(rf.RankfoldError, match=r"policy Timed.*seconds"):
        rf.plan(model(40, 30), Timed(seconds), inputs=X, adapter=NumpyAdapter())


def test_a_text_is_no_tuple_of_notes() -> None:
    with pytest.raises(rf.RankfoldError, match=r"policy Timed.*notes"):
        rf.plan(model(40, 30), Timed(None, "one text"), inputs=X, adapter=NumpyAdapter())
