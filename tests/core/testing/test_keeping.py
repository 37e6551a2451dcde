from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from rankfold_numpy.adapter import NumpyAdapter, arrays, walk
from rankfold_numpy.harness import NumpyHarness
from safetensors.numpy import load_file
from tests.conformance.test_torch import TorchHarness
from tests.core.testing.wrong_adapters import checks_of, failed, fails, harness_of
from torch import nn

from rankfold.testing import check_adapter, keeping
from rankfold_torch.adapter import TorchAdapter


class SavesNoBias(NumpyAdapter):
    def save_weights(self, model, file):
        other = copy.deepcopy(model)
        for _, layer in walk(other):
            layer.bias = None
        super().save_weights(other, file)


class LoadsBlindly(NumpyAdapter):
    def load_weights(self, model, file):
        stored = load_file(file)
        for name, array in arrays(model).items():
            array.flat[: stored[name].size] = stored[name].flat[: array.size]
        return model


class AlwaysFloat32(NumpyAdapter):
    def build(self, model, path, chain):
        built = super().build(model, path, chain)
        for _, layer in walk(built):
            layer.kernel = layer.kernel.astype(np.float32)
        return built


class AlwaysEval(NumpyAdapter):
    def build(self, model, path, chain):
        built = super().build(model, path, chain)
        for _, layer in walk(built):
            layer.training = False
        return built


class Frozen(TorchAdapter):
    def build(self, model: Any, path: str, chain: Any) -> nn.Module:
        built = super().build(model, path, chain)
        next(built.children()).requires_grad_(False)
        return built


class Otherwise(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y * 2 if torch.compiler.is_compiling() else y


class CompilesWrongly(TorchAdapter):
    def build(self, model: Any, path: str, chain: Any) -> nn.Module:
        return Otherwise(*super().build(model, path, chain))


WRONG = {
    "save_and_load": SavesNoBias,
    "load_checks": LoadsBlindly,
    "dtype": AlwaysFloat32,
    "mode": AlwaysEval,
}
WRONG_TORCH = {
    "gradients": Frozen,
    "compiled": CompilesWrongly,
}


def test_every_check_has_a_wrong_adapter() -> None:
    assert {*WRONG, *WRONG_TORCH} == checks_of(keeping)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_adapter_fails_the_check_meant_for_it_and_no_other(name: str) -> None:
    assert set(failed(check_adapter(harness_of(NumpyHarness, WRONG[name])))) == {name}


@pytest.mark.parametrize("name", list(WRONG_TORCH))
def test_a_wrong_torch_adapter_fails_the_check_meant_for_it(name: str) -> None:
    harness = harness_of(TorchHarness, WRONG_TORCH[name])
    harness.compiler = "eager"  # the fault is in the graph already; no C++ need be written for it
    fails(name, harness)
