from __future__ import annotations

import copy

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter, walk
from rankfold_numpy.framework import Conv1D, Model
from rankfold_numpy.harness import NumpyHarness
from tests.core.testing.wrong_adapters import checks_of, failed, harness_of

from rankfold.testing import check_adapter, replacing


class ForgetsStride(NumpyAdapter):
    def build(self, model, path, chain):
        built = super().build(model, path, chain)
        for layer in built.layers:
            if isinstance(layer, Conv1D):
                layer.stride = 1
        return built


class LosesBias(NumpyAdapter):
    def replace(self, model, modules, *, inplace):
        for module in modules.values():
            module.layers[-1].bias = None
        return super().replace(model, modules, inplace=inplace)


class LosesBiasOfFirst(NumpyAdapter):
    def replace(self, model, modules, *, inplace):
        if len(modules) > 1:
            next(iter(modules.values())).layers[-1].bias = None
        return super().replace(model, modules, inplace=inplace)


class WrongAtLowRank(NumpyAdapter):
    def replace(self, model, modules, *, inplace):
        for module in modules.values():
            first = module.layers[0].kernel
            if first.shape[-1] < min(first.shape[-2], module.layers[-1].kernel.shape[-1]):
                module.layers[0].kernel = first * 1.01
        return super().replace(model, modules, inplace=inplace)


class TouchesOriginal(NumpyAdapter):
    def replace(self, model, modules, *, inplace):
        small = super().replace(model, modules, inplace=inplace)
        for _, layer in walk(model):
            layer.kernel = layer.kernel * (1 + 1e-6)
        return small


class HidesParameters(NumpyAdapter):
    def build(self, model, path, chain):
        built = super().build(model, path, chain)
        if isinstance(built.layers[-1], Conv1D) and built.layers[-1].bias is not None:
            size = built.layers[-1].kernel.shape[-1]
            identity = np.eye(size, dtype=built.layers[-1].kernel.dtype)
            built.layers.append(Conv1D(identity[None], training=built.layers[-1].training))
        return built


class StridesLate(NumpyAdapter):
    def build(self, model, path, chain):
        built = super().build(model, path, chain)
        first, *_, last = built.layers
        strided = [layer for layer in built.layers if getattr(layer, "stride", 1) > 1]
        if strided and isinstance(last, Conv1D) and last is not strided[0] and first is not last:
            last.stride, strided[0].stride = strided[0].stride, 1
        return built


class Unshares(NumpyAdapter):
    def replace(self, model, modules, *, inplace):
        layers = dict(walk(model))
        for path, module in list(modules.items()):
            for other in self.aliases(model, path):
                layers[other] = copy.deepcopy(module)
        small = super().replace(model, modules, inplace=inplace)
        small.layers = [
            copy.deepcopy(layer) if layer in small.layers[:i] else layer
            for i, layer in enumerate(small.layers)
        ]
        return small


class IgnoresTies(NumpyAdapter):
    def read(self, model, path):
        layer = copy.deepcopy(dict(walk(model))[path])
        return super().read(Model([layer]), "0")


WRONG = {
    "build": ForgetsStride,
    "full_rank": LosesBias,
    "chain_of_layers": LosesBiasOfFirst,
    "reduced_rank": WrongAtLowRank,
    "original_untouched": TouchesOriginal,
    "parameters": HidesParameters,
    "macs": StridesLate,
    "shared": Unshares,
    "tied": IgnoresTies,
}


def test_every_check_has_a_wrong_adapter() -> None:
    assert WRONG.keys() == checks_of(replacing)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_adapter_fails_the_check_meant_for_it_and_no_other(name: str) -> None:
    assert set(failed(check_adapter(harness_of(NumpyHarness, WRONG[name])))) == {name}
