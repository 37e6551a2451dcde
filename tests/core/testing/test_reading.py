from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.harness import NumpyHarness
from tests.core.testing.wrong_adapters import checks_of, failed, harness_of

from rankfold import RankfoldError
from rankfold.adapters.base import Trace
from rankfold.ops import Conv
from rankfold.testing import check_adapter, reading


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
        extents = {p: tuple((1, *e[1:]) for e in calls) for p, calls in seen.extents.items()}
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


WRONG = {
    "layers": ReversedLayers,
    "read": ForgetsDilation,
    "missing_bias": AddsBias,
    "size": CountsOneMore,
    "precision": AlwaysSingle,
    "trace": ForgetsBatch,
    "outputs": NamesTheFirst,
    "bad_inputs": SwallowsErrors,
}


def test_every_check_has_a_wrong_adapter() -> None:
    assert WRONG.keys() == checks_of(reading)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_adapter_fails_the_check_meant_for_it_and_no_other(name: str) -> None:
    assert set(failed(check_adapter(harness_of(NumpyHarness, WRONG[name])))) == {name}
