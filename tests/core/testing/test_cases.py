from __future__ import annotations

import math

import numpy as np
import pytest
from rankfold_numpy.harness import NumpyHarness

from rankfold.ops import Conv, ConvTranspose, Embedding, Linear
from rankfold.ops.reference import forward
from rankfold.testing.cases import (
    CASES,
    decomposed,
    distance,
    methods,
    probe,
    rows,
    square,
    supported,
)


def test_there_is_a_case_for_every_kind_of_layer() -> None:
    assert {type(op) for op in CASES.values()} == {Linear, Conv, ConvTranspose, Embedding}


@pytest.mark.parametrize("name", CASES)
def test_an_input_fits_its_layer_and_no_transposition_can_hide(name: str) -> None:
    op = CASES[name]
    y = forward(op, probe(op))
    assert np.isfinite(y).all()
    assert 0.1 < y.std() < 10.0
    assert len(set(op.weight.shape) - {1}) == len([size for size in op.weight.shape if size != 1])
    x = rows(op)
    assert np.array_equal(np.ravel(x), np.ravel(probe(op)))
    assert x.ndim == (1 if isinstance(op, Embedding) else op.weight.ndim)


def test_layers_that_a_framework_lacks_are_left_out() -> None:
    names = [name for name, _, _ in supported(NumpyHarness())]
    assert names == ["linear", "linear without bias", "convolution 1-d"]


def test_a_decomposition_is_made_once_and_its_arrays_belong_to_the_caller() -> None:
    op = CASES["linear"]
    first = decomposed(op, "svd", full=False).chain
    before = first[0].weight.copy()
    first[0].weight[:] = 0.0
    assert np.array_equal(decomposed(op, "svd", full=False).chain[0].weight, before)
    assert decomposed(op, "svd", full=True).error < 1e-6 < decomposed(op, "svd", full=False).error


def test_methods_are_those_that_apply() -> None:
    assert methods(CASES["linear"]) == ["svd"]
    assert methods(CASES["transposed convolution"]) == ["tucker2", "channel_svd"]
    assert "spatial_svd" not in methods(CASES["convolution 1-d"])


def test_a_square_layer_takes_its_own_output() -> None:
    op, x = square(7), probe(square(7))
    assert op.bias is None
    assert forward(op, forward(op, x)).shape == x.shape


def test_outputs_of_another_shape_are_infinitely_far() -> None:
    a = np.arange(6.0).reshape(2, 3)
    assert distance(a, a.T) == math.inf
    assert distance(1.5 * a, a) == pytest.approx(0.5)
    assert distance(np.zeros(3), np.zeros(3)) == 0.0
