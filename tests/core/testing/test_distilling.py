from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
from rankfold_numpy.harness import NumpyHarness
from tests.conformance.test_torch import TorchHarness
from tests.core.testing.wrong_adapters import checks_of, fails, harness_of

from rankfold.testing import CHECKS, Unsupported, distilling
from rankfold_torch.adapter import TorchAdapter


class KeepsTheFirstStudent(TorchAdapter):
    @contextmanager
    def student(self, model: Any, small: Any, held_out: Any) -> Any:
        with super().student(model, small, held_out) as student:
            student.keep = lambda: None
            yield student


def test_a_wrong_adapter_fails_the_only_check() -> None:
    assert checks_of(distilling) == {"distil"}
    fails("distil", harness_of(TorchHarness, KeepsTheFirstStudent))


def test_an_adapter_that_does_not_implement_it_is_not_checked() -> None:
    with pytest.raises(Unsupported):
        CHECKS["distil"](NumpyHarness())
