from __future__ import annotations

from typing import Any

import pytest
from rankfold_numpy.harness import NumpyHarness
from tests.conformance.test_torch import TorchHarness
from tests.core.testing.wrong_adapters import checks_of, fails, harness_of
from torch import nn

from rankfold.ops.interpolation import without_pivots
from rankfold.testing import CHECKS, Unsupported, interpolating
from rankfold_torch.adapter import TorchAdapter


class StoresTheIdentity(TorchAdapter):
    def build(self, model: Any, path: str, chain: Any) -> nn.Module:
        return super().build(model, path, without_pivots(chain))


def test_a_wrong_adapter_fails_the_only_check() -> None:
    assert checks_of(interpolating) == {"interpolated"}
    fails("interpolated", harness_of(TorchHarness, StoresTheIdentity))


def test_an_adapter_that_does_not_implement_it_is_not_checked() -> None:
    with pytest.raises(Unsupported):
        CHECKS["interpolated"](NumpyHarness())
