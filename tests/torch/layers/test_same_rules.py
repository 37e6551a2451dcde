"""Convolutions with "SAME" padding and with standardised weights, as ops."""

import importlib
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.errors import Refused
from rankfold_torch.layers.same_rules import read_same, read_standardised


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_all_but_the_padding_is_read_as_it_stands(kind: Any) -> None:
    layer = kind(6, 4, 3, stride=2, padding=1, dilation=2, groups=2)
    op = read_same(layer)
    axes = op.weight.ndim - 2
    assert op.padding == "same"
    assert (op.stride, op.dilation, op.groups) == ((2,) * axes, (2,) * axes, 2)
    np.testing.assert_array_equal(op.weight, layer.weight.detach().numpy())


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_standardised_weight_is_that_of_the_formula(same: bool, scaled: bool) -> None:
    layer: Any = nn.Conv2d(6, 4, (3, 2), padding=1, groups=2)
    layer.eps = 0.01
    gain = torch.rand(4) + 0.5 if scaled else None
    op = read_standardised(layer, same=same, gain=gain)
    rows = layer.weight.detach().numpy().astype(np.float64).reshape(4, -1)
    rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 0.01)
    if gain is not None:
        rows *= gain.numpy()[:, None]
    assert op.weight.dtype == np.float32
    np.testing.assert_allclose(op.weight, rows.reshape(4, 3, 3, 2), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(op.bias, layer.bias.detach().numpy())  # type: ignore[arg-type]
    assert op.padding == ("same" if same else ((1, 1), (1, 1)))


def test_half_precision_is_standardised_in_full() -> None:
    layer: Any = nn.Conv1d(3, 5, 4).to(torch.bfloat16)
    layer.eps = 0.0
    op = read_standardised(layer, same=False)
    assert op.weight.dtype == np.float32
    np.testing.assert_allclose(op.weight.reshape(5, -1).std(1), 1, rtol=1e-6)


def test_other_layers_are_refused() -> None:
    layer = nn.Linear(5, 3)
    with pytest.raises(Refused, match="for convolutions, and it is a Linear"):
        read_same(layer)
    with pytest.raises(Refused, match="for convolutions, and it is a Linear"):
        read_standardised(layer, same=True)


def test_the_module_that_they_were_in_says_where_they_are() -> None:
    sys.modules.pop("rankfold_torch.rules", None)
    with pytest.warns(DeprecationWarning, match=r"has moved to rankfold_torch\.layers$"):
        before = importlib.import_module("rankfold_torch.rules")
    assert (before.read_same, before.read_standardised) == (read_same, read_standardised)
