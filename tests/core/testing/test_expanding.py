from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from rankfold_numpy.harness import NumpyHarness
from tests.conformance.test_torch import TorchHarness
from tests.core.testing.wrong_adapters import checks_of, fails, harness_of

from rankfold.testing import CHECKS, Unsupported, expanding
from rankfold_torch.adapter import TorchAdapter


class GivesTheOriginal(TorchAdapter):
    def expanded(self, model: Any, small: Any, paths: Sequence[str]) -> Any:
        return model


class GivesTheCompressed(TorchAdapter):
    def expanded(self, model: Any, small: Any, paths: Sequence[str]) -> Any:
        return small


class ChangesTheCompressed(TorchAdapter):
    def expanded(self, model: Any, small: Any, paths: Sequence[str]) -> Any:
        dense = super().expanded(model, small, paths)
        next(small.parameters()).data.zero_()
        return dense


@pytest.mark.parametrize("wrong", [GivesTheOriginal, GivesTheCompressed, ChangesTheCompressed])
def test_a_wrong_adapter_fails_the_only_check(wrong: type) -> None:
    assert checks_of(expanding) == {"expanded"}
    fails("expanded", harness_of(TorchHarness, wrong))


def test_an_adapter_that_does_not_implement_it_is_not_checked() -> None:
    with pytest.raises(Unsupported):
        CHECKS["expanded"](NumpyHarness())
