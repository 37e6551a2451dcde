from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter, arrays
from rankfold_numpy.framework import Dense, Model
from tests.core.numpy_models import Gathers, model, session_of, task_of

import rankfold as rf
from rankfold.adapters.base import Trace
from rankfold.errors import RankfoldError, Refused
from rankfold.pipeline.calibrate import calibrate
from rankfold.pipeline.execution import plan_only, run_policy

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


class Refusing(NumpyAdapter):
    """An adapter that builds nothing for some layers."""

    def __init__(self, *paths: str) -> None:
        self.paths = paths

    def build(self, network: Any, path: str, chain: Any) -> Any:
        if path in self.paths:
            raise Refused("no room")
        return super().build(network, path, chain)


def sized(network: Any) -> int:
    return sum(array.size for array in arrays(network).values())


def noise() -> Any:
    rng = np.random.default_rng(0)
    sizes = ((48, 64), (64, 96), (96, 9))
    return Model([Dense(rng.standard_normal(size).astype(np.float32)) for size in sizes])


def test_a_policy_without_effect_is_told_with_the_reason_most_layers_have() -> None:
    (note,) = rf.plan(noise(), rf.VBMF(), adapter=NumpyAdapter()).notes
    assert "no layer is replaced, 2 of 3 since 'rank 0: EVBMF found no structure" in note
    assert "Budget(params=0.5)" in note


@pytest.mark.parametrize("policy", [rf.Ratio(0.2), rf.Budget(params=1.0), rf.Ranks(1)])
def test_other_plans_say_nothing_of_it(policy: rf.Budget | rf.Ratio | rf.Ranks) -> None:
    notes = rf.plan(noise(), policy, adapter=NumpyAdapter()).notes
    assert not [note for note in notes if "no layer" in note]


def test_a_plan_is_what_a_compression_does_but_for_what_is_built() -> None:
    session = session_of(model(40, 30, 20))
    plan = plan_only(task_of(session, rf.Ranks(5)))
    small, done = run_policy(task_of(session, rf.Ranks(5)), refit=True, inplace=False)
    assert [layer.ranks for layer in plan.layers] == [(5,), (5,)]
    assert msgspec.structs.replace(done, notes=plan.notes) == plan
    assert done.model_params[1] == sized(small)
    assert sized(session.model) == done.model_params[0]


def test_a_budget_is_filled_anew_without_a_layer_that_cannot_be_built() -> None:
    session = session_of(model(40, 39, 38, 37), adapter=Refusing("1"))
    small, plan = run_policy(task_of(session, rf.Budget(params=0.6)), refit=True, inplace=False)
    assert plan["1"].reason == "no room"
    assert sized(small) == plan.model_params[1] <= 0.6 * plan.model_params[0]
    # What the layer does not save the others do.
    free = plan_only(task_of(session_of(model(40, 39, 38, 37)), rf.Budget(params=0.6)))
    assert plan["0"].ranks < free["0"].ranks


def test_ranks_that_were_asked_for_stay_where_another_layer_cannot_be_built() -> None:
    session = session_of(model(40, 30, 20), adapter=Refusing("0"))
    _, plan = run_policy(task_of(session, rf.Ranks(5)), refit=True, inplace=False)
    assert (plan["0"].method, plan["0"].reason) == (None, "no room")
    assert plan["1"].ranks == (5,)


def test_a_layer_that_stays_at_work_is_left_alone_in_the_model_itself() -> None:
    class Holding(NumpyAdapter):
        def replaced(
            self, network: Any, modules: Mapping[str, Any], *, inplace: bool
        ) -> tuple[Any, Mapping[str, str]]:
            if inplace and "0" in modules:
                return network, {"0": "somebody holds it"}
            return super().replace(network, modules, inplace=inplace), {}

    network = model(40, 30, 20)
    session = session_of(network, adapter=Holding())
    same, plan = run_policy(task_of(session, rf.Ranks(5)), refit=True, inplace=True)
    assert same is network
    assert plan["0"].reason == "somebody holds it"
    assert [type(layer).__name__ for layer in network.layers] == ["Dense", "Model"]


def test_a_search_keeps_an_outcome_of_its_own_call() -> None:
    kept: list[Any] = []

    class Searching:
        name = "searching"
        looks_at = "plans"

        def allocate(self, layers: Any) -> Any:
            raise AssertionError("search is asked")

        def search(self, network: Any, attempt: Any, resource: str) -> Any:
            kept.append((resource, attempt(rf.Ranks(3)), attempt(rf.Ranks(5))))
            return kept[0][1]

    for inputs, resource in ((None, "params"), (X, "macs")):
        session = session_of(model(40, 30, 20), inputs=inputs)
        task = task_of(session, Searching())  # type: ignore[arg-type]  # no text is read
        if inputs is None:
            _, plan = run_policy(task, refit=True, inplace=False)
            assert [layer.ranks for layer in plan.layers] == [(3,), (3,)]
            assert "Searching" in plan.policy
        else:
            with pytest.raises(RankfoldError, match="give back one of the outcomes of attempt"):
                run_policy(task, refit=True, inplace=False)
        assert kept[-1][0] == resource


def test_distillation_of_trials_needs_data_and_a_copy() -> None:
    budget = rf.Budget(drop=0.1, evaluate=lambda network: 1.0, distil_steps=3)
    session = session_of(model(40, 30, 20), adapter=Gathers())
    with pytest.raises(RankfoldError, match="distil_steps= needs calibration data; pass"):
        run_policy(task_of(session, budget), refit=True, inplace=False)
    informed = task_of(session, budget, calibrated=calibrate(session, [X], None, None))
    with pytest.raises(RankfoldError, match="distil_steps= trains a copy; leave inplace= out"):
        run_policy(informed, refit=True, inplace=True)


def test_layers_at_work_that_no_count_takes_in_are_named() -> None:
    class Uncounted(NumpyAdapter):
        def trace(self, network: Any, inputs: Any) -> Trace:
            seen = super().trace(network, inputs)
            return Trace({"0": seen.extents["0"]}, {}, uncounted=frozenset(["1", "2", "3", "4"]))

    session = session_of(model(40, 30, 20, 10, 9, 8), adapter=Uncounted(), inputs=X)
    (note,) = plan_only(task_of(session, rf.Ranks(2))).notes
    assert note.endswith("not counted are those of '1', '2', '3' and 1 more")
