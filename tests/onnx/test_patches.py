"""Rows of a layer's input at sampled positions, against the reference forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.onnx.graphs import drawn

from rankfold.ops import Conv, ConvTranspose, Linear
from rankfold.ops.reference import forward
from rankfold_onnx import patches


def layers() -> Iterator[Any]:
    cases: dict[str, tuple[Any, tuple[int, ...]]] = {
        "linear": (Linear(drawn(7, 5), drawn(7)), (2, 3, 5)),
        "vector": (Linear(drawn(7, 5)), (5,)),
        "conv": (
            Conv(drawn(8, 3, 3, 2), drawn(8), stride=2, padding=((1, 2), (0, 1))),
            (2, 3, 9, 8),
        ),
        "dilated": (Conv(drawn(8, 3, 4), dilation=2, padding="same"), (2, 3, 11)),
        "groups": (Conv(drawn(8, 2, 3), groups=4, padding=1), (2, 8, 9)),
        "transposed": (
            ConvTranspose(drawn(6, 4, 3, 2), drawn(6), stride=(2, 3), padding=1, output_padding=1),
            (2, 4, 6, 5),
        ),
        "cropped": (ConvTranspose(drawn(6, 2, 2), stride=3, padding=2, groups=2), (2, 4, 7)),
    }
    for name, (op, shape) in cases.items():
        yield pytest.param(op, shape, id=name)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize(("op", "shape"), list(layers()))
def test_rows_are_what_the_weight_meets(op: Any, shape: tuple[int, ...], few: bool) -> None:
    x = drawn(*shape).astype(np.float64)
    sample = patches.sample(op, shape, 4000 if few else 1, np.random.default_rng(0))
    assert few or sample.chosen is None
    y = np.asarray(forward(op, x))
    taken = patches.Inputs(op, x, sample)
    rows = np.concatenate(
        [taken.take(slice(i, min(i + 7, sample.rows))) for i in range(0, sample.rows, 7)]
    )
    weight = op.weight.reshape(op.groups, len(op.weight) // op.groups, -1)
    bias = 0 if op.bias is None else op.bias.reshape(op.groups, -1)
    outputs = np.einsum("god,rgd->rgo", weight, rows) + bias
    whole = slice(0, sample.rows)
    np.testing.assert_allclose(outputs, patches.outputs(op, y, sample, whole), rtol=1e-6, atol=1e-6)


def test_the_extent_has_images_in_front() -> None:
    assert patches.extent_of(Linear(drawn(7, 5)), (2, 3, 5)) == (2, 3)
    assert patches.extent_of(Linear(drawn(7, 5)), (5,)) == (1,)
    assert patches.extent_of(Conv(drawn(8, 3, 4)), (2, 3, 11)) == (2, 11)


def test_products_are_in_float32_at_least() -> None:
    half = np.ones(3, np.float16)
    assert patches.working(half).dtype == np.float32
    double = np.ones(3)
    assert patches.working(double) is double
