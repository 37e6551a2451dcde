"""Copies of a layer with other values."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.errors import Refused
from rankfold.ops import Embedding, Linear
from rankfold_torch.adapter import TorchAdapter

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3),
        nn.Linear(4, 3, bias=False).to(torch.bfloat16),
        nn.Conv2d(4, 6, 3, groups=2).to(memory_format=torch.channels_last).requires_grad_(False),
        nn.ConvTranspose2d(4, 6, (3, 2), groups=2),
        nn.Embedding(5, 3, padding_idx=1),
    ],
)
def test_refilled_layers(layer: nn.Module, untouched: Untouched) -> None:
    adapter = TorchAdapter()
    model = nn.Sequential(layer).train()
    op = adapter.read(model, "0")
    new = replace(op, weight=op.weight * 2)
    if new.bias is not None and not isinstance(new, Embedding):
        new = replace(new, bias=new.bias + 1)
    layer.weight.grad = torch.ones_like(layer.weight)  # type: ignore[arg-type]
    with untouched(model):
        refilled = adapter.refilled(model, "0", new)
    again = adapter.read(nn.Sequential(refilled), "0")
    np.testing.assert_array_equal(again.weight, new.weight)
    if new.bias is not None:
        assert again.bias is not None
        np.testing.assert_array_equal(again.bias, new.bias)
    old, weight = layer.weight, refilled.weight
    assert isinstance(old, nn.Parameter)
    assert isinstance(weight, nn.Parameter)
    assert (weight.dtype, weight.stride()) == (old.dtype, old.stride())
    assert weight.requires_grad == old.requires_grad
    assert weight.grad is None
    assert type(refilled) is type(layer)
    assert refilled.training


def test_refilled_refuses_what_does_not_fit() -> None:
    adapter = TorchAdapter()
    model = nn.Sequential(nn.Linear(4, 3))
    weight = np.ones((3, 4))
    with pytest.raises(Refused, match="do not fit"):
        adapter.refilled(model, "0", Linear(weight))
    with pytest.raises(Refused, match=r"\(3, 5\)"):
        adapter.refilled(model, "0", Linear(np.ones((3, 5)), np.ones(3)))


def test_a_layer_of_a_rule_is_refilled_in_its_own_layout() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    adapter = TorchAdapter()
    for size in ((5, 3), (4, 4)):
        model = nn.Sequential(transformers.Conv1D(*size))
        op = adapter.read(model, "0")
        assert isinstance(op, Linear)
        refilled = adapter.refilled(model, "0", replace(op, weight=op.weight * 3))
        x = torch.randn(2, size[1])
        bias = model[0].bias
        torch.testing.assert_close(refilled(x) - bias, 3 * (model(x) - bias))
