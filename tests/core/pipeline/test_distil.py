from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.framework import Dense, Model
from tests.core.numpy_models import Gathers, model

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.pipeline.distil import distil

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


class Student:
    """A student whose training leads to a model that is known."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def step(self, inputs: Any, rate: float) -> None:
        assert inputs.shape[1] == 40

    def held_out_loss(self) -> float:
        return 0.5

    def keep(self) -> None:
        """Note nothing."""

    def restore(self) -> None:
        """Go back to nothing."""

    def kept(self) -> Any:
        return self.result


class Trains(Gathers):
    image_axes = (1, 2)

    def __init__(self, result: Any) -> None:
        self.result = result

    @contextmanager
    def student(self, network: Any, small: Any, held_out: Any) -> Iterator[Student]:
        yield Student(self.result)


ORIGINAL = model(40, 30, 20)


@pytest.fixture(scope="module")
def small() -> rf.Compressed:
    return rf.compress(ORIGINAL, rf.Ranks(5), adapter=NumpyAdapter())


def test_a_better_model_is_returned_with_its_loss_in_the_plan(small: rf.Compressed) -> None:
    better = copy.deepcopy(ORIGINAL)
    result = distil(small, ORIGINAL, [X], steps=1, adapter=Trains(better))
    assert result.model is better
    assert result.plan.loss == (0.0, 0.0)
    assert result.plan.params == small.plan.params
    assert len(result.plan.notes) == len(small.plan.notes) + 1
    assert small.plan.loss is None


def test_a_model_that_gained_nothing_is_the_very_one_that_was_given(small: rf.Compressed) -> None:
    worse = Model([Dense(np.zeros((40, 20), np.float32))])
    assert distil(small, ORIGINAL, [X], steps=1, adapter=Trains(worse)).model is small.model
    assert distil(small.model, ORIGINAL, [X], steps=1, adapter=Trains(worse)) is small.model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "distil: steps 0; use an int from 1 on"),
        ({"seed": -1}, "seed -1"),
        ({"seconds": 0}, "distil: seconds 0; use a number above 0, None for no limit"),
        ({"seconds": math.inf}, "distil: seconds inf"),
        ({"seconds": "5"}, "distil: seconds '5'"),
        ({"batches": [X[:3]]}, "distil: 3 examples; give at least 4"),
        ({"adapter": Gathers()}, "Gathers cannot distil; fine-tune the model in a loop"),
    ],
)
def test_arguments_that_are_none_are_named(
    arguments: dict[str, Any], message: str, small: rf.Compressed
) -> None:
    options = {"batches": [X], "adapter": Trains(small.model), **arguments}
    with pytest.raises(RankfoldError, match=message):
        distil(small, ORIGINAL, **options)
