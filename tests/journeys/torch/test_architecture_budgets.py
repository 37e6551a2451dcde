"""Budgets hold on every kind of architecture, with calibration data, by a count of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.journeys.torch.test_architectures import MODELS, made, run, tensors
from torch import nn
from transformers.pytorch_utils import Conv1D

import rankfold as rf
from rankfold_torch.layers.interpolative import Interpolative

LIMITS = {"macs": 0.6, "params": 0.95}
LOOSER = {"macs": 0.85, "params": 1.0}  # what is left alone is counted, too
MOSTLY_LEFT_ALONE = ("lstm", "nn.Transformer", "mamba")  # recurrent, packed or read elsewhere
# Of each of these another network has the same layers, called in the same ways: bert, llama, vit,
# bart and resnet; the last two have those of efficientnet, in many more blocks. What is planned and
# built of them is tested with all other networks.
ALIKE = (
    *("roberta", "electra", "mpnet", "distilbert", "mistral", "qwen", "gemma", "deit", "beit"),
    *("marian", "hf resnet", "regnet", "mobilenetv2"),
)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def counting(model: nn.Module) -> Iterator[list[int]]:
    """MACs of all stock layers that are called, by their outputs (inputs of transposed ones)."""
    found: list[int] = []

    def count(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, Interpolative):
            channels = module.rank if not module.tall else len(module.order)
            found.append(output.numel() // channels * module.weight.numel())
        elif isinstance(module, nn.Linear):
            found.append(output.numel() * module.weight.shape[1])
        elif isinstance(module, Conv1D):
            found.append(output.numel() * module.weight.shape[0])
        elif isinstance(module, CONVS):
            found.append(output.numel() * module.weight[0].numel())
        else:
            found.append(args[0].numel() * module.weight[0].numel())

    kinds = (Interpolative, nn.Linear, Conv1D, *CONVS, *TRANSPOSED)
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def macs(model: nn.Module, inputs: Any) -> int:
    with counting(model) as found:
        run(model, inputs)
    return sum(found)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ALIKE])
def test_a_budget_with_data_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankfold.pipeline.calibrate.FEWEST", 1)  # the example inputs are few
    model, inputs = made(name)
    limits = LOOSER if name in MOSTLY_LEFT_ALONE else LIMITS
    budget = rf.Budget(**limits)
    whole = macs(model, inputs)
    small = rf.compress(model, budget, inputs=inputs, calibration=[inputs])
    size, before = (sum(p.numel() for p in m.parameters()) for m in (small.model, model))
    assert size <= limits["params"] * before
    assert small.plan.model_params == (before, size)
    assert small.plan.macs is not None
    saved = whole - macs(small.model, inputs)
    assert small.plan.macs[0] - small.plan.macs[1] == pytest.approx(saved)
    assert small.plan.macs[1] <= limits["macs"] * small.plan.macs[0]
    assert all(y.isfinite().all() for y in tensors(run(small.model, inputs)))
    for layer in small.plan.replaced:
        if layer.predicted is not None and layer.measured is not None:
            assert layer.measured == pytest.approx(layer.predicted, rel=0.1, abs=0.02)
