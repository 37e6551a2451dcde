"""Deliberately wrong adapters: each fails the check meant for it, and no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rankfold_numpy.adapter import NumpyAdapter, walk
from rankfold_numpy.framework import Conv1D, Model
from rankfold_numpy.harness import NumpyHarness
from tests.conformance.test_torch import TorchHarness
from torch import nn

from rankfold import RankfoldError
from rankfold.adapters.base import Trace
from rankfold.ops import Conv
from rankfold.ops.interpolation import without_pivots
from rankfold.testing import CHECKS, CheckResult, check_adapter
from rankfold.testing.visits import Visits
from rankfold_torch.adapter import TorchAdapter


class ReversedLayers(NumpyAdapter):
    def layers(self, model):
        return dict(reversed(super().layers(model).items()))


class ForgetsDilation(NumpyAdapter):
    def read(self, model, path):
        op = super().read(model, path)
        return replace(op, dilation=1) if isinstance(op, Conv) else op


class AddsBias(NumpyAdapter):
    def build(self, model, path, chain):
        built = super().build(model, path, chain)
        last = built.layers[-1]
        if last.bias is None:
            last.bias = np.zeros(last.kernel.shape[-1], last.kernel.dtype)
        return built


class CountsOneMore(NumpyAdapter):
    def size(self, model):
        return super().size(model) + 1


class AlwaysSingle(NumpyAdapter):
    def precision(self, model, path):
        return float(np.finfo(np.float32).eps)


class ForgetsBatch(NumpyAdapter):
    def trace(self, model, inputs):
        seen = super().trace(model, inputs)
        extents = {p: tuple((1, *e[1:]) for e in found) for p, found in seen.extents.items()}
        return Trace(extents, {})


class NamesTheFirst(NumpyAdapter):
    def trace(self, model, inputs):
        seen = super().trace(model, inputs)
        return replace(seen, outputs=frozenset(list(seen.extents)[:1]))


class SwallowsErrors(NumpyAdapter):
    def trace(self, model, inputs):
        try:
            return super().trace(model, inputs)
        except RankfoldError:
            return Trace({}, {})


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
        made = super().replace(model, modules, inplace=inplace)
        for _, layer in walk(model):
            layer.kernel = layer.kernel * (1 + 1e-6)
        return made


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
        made = super().replace(model, modules, inplace=inplace)
        made.layers = [
            copy.deepcopy(layer) if layer in made.layers[:i] else layer
            for i, layer in enumerate(made.layers)
        ]
        return made


class IgnoresTies(NumpyAdapter):
    def read(self, model, path):
        layer = copy.deepcopy(dict(walk(model))[path])
        return super().read(Model([layer]), "0")


class SavesNoBias(NumpyAdapter):
    def save_weights(self, model, file):
        other = copy.deepcopy(model)
        for _, layer in walk(other):
            layer.bias = None
        super().save_weights(other, file)


class LoadsBlindly(NumpyAdapter):
    def load_weights(self, model, file):
        from rankfold_numpy.adapter import arrays
        from safetensors.numpy import load_file

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


WRONG = {
    "layers": ReversedLayers,
    "read": ForgetsDilation,
    "missing_bias": AddsBias,
    "size": CountsOneMore,
    "precision": AlwaysSingle,
    "trace": ForgetsBatch,
    "outputs": NamesTheFirst,
    "bad_inputs": SwallowsErrors,
    "build": ForgetsStride,
    "full_rank": LosesBias,
    "chain_of_layers": LosesBiasOfFirst,
    "reduced_rank": WrongAtLowRank,
    "original_untouched": TouchesOriginal,
    "parameters": HidesParameters,
    "macs": StridesLate,
    "shared": Unshares,
    "tied": IgnoresTies,
    "save_and_load": SavesNoBias,
    "load_checks": LoadsBlindly,
    "dtype": AlwaysFloat32,
    "mode": AlwaysEval,
}


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


class GathersTransposed(TorchAdapter):
    def moments(self, *args: Any) -> Any:
        found = super().moments(*args)
        return {p: replace(layer, mean=layer.mean[:, ::-1]) for p, layer in found.items()}


class FollowsWithoutBias(TorchAdapter):
    def run_paired(
        self, model: Any, calibration: Any, layers: Any, visit: Any, **options: Any
    ) -> Any:
        def blind(path: str, fit: Any, held: Any) -> Any:
            return visit(path, None if fit is None else replace(fit, y=fit.y * 0), held)

        return super().run_paired(model, calibration, layers, Visits(blind, visit.bases), **options)


class FollowsWholeRows(TorchAdapter):
    def run_paired(
        self, model: Any, calibration: Any, layers: Any, visit: Any, **options: Any
    ) -> Any:
        return super().run_paired(model, calibration, layers, Visits(visit), **options)


class RefillsNothing(TorchAdapter):
    def refilled(self, model: Any, path: str, op: Any) -> nn.Module:
        return copy.deepcopy(model.get_submodule(path))


class KeepsTheFirstStudent(TorchAdapter):
    @contextmanager
    def student(self, model: Any, small: Any, held_out: Any) -> Any:
        with super().student(model, small, held_out) as student:
            student.keep = lambda: None
            yield student


class StoresTheIdentity(TorchAdapter):
    def build(self, model: Any, path: str, chain: Any) -> nn.Module:
        return super().build(model, path, without_pivots(chain))


WRONG_TORCH = {
    "gradients": Frozen,
    "compiled": CompilesWrongly,
    "moments": GathersTransposed,
    "follow": FollowsWithoutBias,
    "refilled": RefillsNothing,
    "distil": KeepsTheFirstStudent,
    "interpolated": StoresTheIdentity,
}


def harness_of(kind: type, adapter: Callable[[], Any]) -> Any:
    harness = kind()
    harness.adapter = adapter
    return harness


def failed(results: list[CheckResult]) -> dict[str, str]:
    return {result.name: result.reason for result in results if result.status == "failed"}


def test_every_check_has_a_wrong_adapter() -> None:
    assert {*WRONG, *WRONG_TORCH} == set(CHECKS)


def test_a_right_adapter_passes() -> None:
    results = check_adapter(NumpyHarness())
    assert all(result.ok for result in results)
    assert {r.name for r in results if r.status == "skipped"} == set(WRONG_TORCH)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_adapter_fails_the_check_meant_for_it(name: str) -> None:
    assert set(failed(check_adapter(harness_of(NumpyHarness, WRONG[name])))) == {name}


def test_an_adapter_that_projects_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="projected: sum of y xᵀ has shape"):
        CHECKS["follow"](harness_of(TorchHarness, FollowsWholeRows))


@pytest.mark.parametrize("name", list(WRONG_TORCH))
def test_a_wrong_torch_adapter_fails_the_check_meant_for_it(name: str) -> None:
    harness = harness_of(TorchHarness, WRONG_TORCH[name])
    harness.compiler = "eager"  # the fault is in the graph already; no C++ need be written for it
    with pytest.raises(AssertionError):
        CHECKS[name](harness)
    for other in ("read", "full_rank"):
        CHECKS[other](harness)


def test_an_expected_failure_is_none() -> None:
    harness = harness_of(NumpyHarness, AlwaysEval)
    results = {r.name: r for r in check_adapter(harness, {"mode": "no modes yet"})}
    assert results["mode"].status == "expected"
    assert results["mode"].reason == "no modes yet"


def test_an_expected_failure_that_passes_is_a_failure() -> None:
    results = check_adapter(NumpyHarness(), {"mode": "no modes yet"})
    assert "passes, though" in failed(results)["mode"]


def test_an_expected_failure_of_no_check_is_an_error() -> None:
    with pytest.raises(RankfoldError, match="no check is named 'speed'"):
        check_adapter(NumpyHarness(), {"speed": "slow"})


def test_what_rests_on_a_failed_check_is_blocked() -> None:
    results = {r.name: r for r in check_adapter(harness_of(NumpyHarness, ReversedLayers))}
    assert results["read"].status == "blocked"
    assert results["read"].reason == "rests on 'layers'"


def test_no_check_comes_before_those_it_rests_on() -> None:
    names = list(CHECKS)
    for name, check in CHECKS.items():
        assert all(names.index(need) < names.index(name) for need in check.needs)
