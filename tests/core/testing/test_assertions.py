from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.harness import NumpyHarness
from tests.core.testing.wrong_adapters import harness_of

import rankfold as rf
from rankfold.adapters.base import Trace
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.policies.ranks import Ranks
from rankfold.testing.assertions import (
    all_replaced,
    compressed,
    drawn_linear,
    epsilon,
    extent,
    fresh_adapter,
    half,
    halved,
    only_path,
    same,
    unchanged,
)
from rankfold.testing.cases import CASES

OP = CASES["linear"]


def test_a_case_is_compressed_once_for_a_harness() -> None:
    harness = NumpyHarness()
    first = halved(harness, harness.model([OP]), OP, "svd", "linear")
    assert halved(harness, harness.model([OP]), OP, "svd", "linear") is first
    assert first.plan["0"].ranks == half(OP, "svd") == (3,)
    other = NumpyHarness()
    assert halved(other, other.model([OP]), OP, "svd", "linear") is not first


def test_every_layer_is_replaced_or_named_with_its_reason() -> None:
    harness = NumpyHarness()
    small = compressed(harness, harness.model([OP]), OP, Ranks(2), None, "linear")
    assert small.plan["0"].method == "svd"
    plan = Plan(layers=(LayerPlan(path="0", reason="no room"),))
    with pytest.raises(AssertionError, match="linear: '0' is left alone: no room"):
        all_replaced("linear", rf.Compressed(None, plan))


def test_an_adapter_has_seen_its_model_run() -> None:
    traced: list[Any] = []

    class Traces(NumpyAdapter):
        def trace(self, model: Any, inputs: Any) -> Trace:
            traced.append(inputs.shape)
            return super().trace(model, inputs)

    harness = harness_of(NumpyHarness, Traces)
    model = harness.model([OP])
    adapter = fresh_adapter(harness, model, OP)
    assert traced == [(2, 3, 11)]
    assert only_path(adapter, model) == "0"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("linear", (2, 3, 11), (2, 3)),
        ("embedding", (2, 3), (2, 3)),
        ("convolution 2-d", (2, 7, 13, 17), (2, 13, 17)),
    ],
)
def test_the_extent_is_the_shape_without_the_channels(
    name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert extent(CASES[name], shape) == expected


def test_outputs_that_differ_are_told_by_how_much() -> None:
    y = np.ones((2, 3))
    same("case", y * (1 + 1e-6), y, "it computes")
    with pytest.raises(AssertionError, match=r"case: it computes something else, off by 1e-06"):
        same("case", y * (1 + 1e-6), y, "it computes", exact=True)
    with pytest.raises(AssertionError, match=r"off by 0.1 of the output"):
        same("case", y * 1.1, y, "it computes")


def test_parameters_that_changed_are_named() -> None:
    before = {"a": np.ones(3), "b": np.zeros(2)}
    unchanged("case", before, {name: array.copy() for name, array in before.items()})
    with pytest.raises(AssertionError, match="case: parameter 'b' of the original has changed"):
        unchanged("case", before, {**before, "b": np.array([0.0, 1e-30])})
    with pytest.raises(AssertionError, match="other parameters than before"):
        unchanged("case", before, {"a": before["a"]})


def test_a_layer_is_drawn_by_its_size() -> None:
    layer = drawn_linear(7, 5)
    assert layer.weight.shape == (7, 5)
    assert np.array_equal(layer.weight, drawn_linear(7, 5).weight)


def test_the_epsilon_of_half_precision_is_known() -> None:
    assert epsilon("bfloat16") == 2.0**-7
    assert epsilon("float64") == np.finfo(np.float64).eps
