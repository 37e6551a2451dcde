from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from tests.conformance.test_torch import TorchHarness
from tests.core.testing.wrong_adapters import checks_of, fails, harness_of
from torch import nn

from rankfold.testing import CHECKS, learning
from rankfold.testing.visits import Visits
from rankfold_torch.adapter import TorchAdapter


class GathersTransposed(TorchAdapter):
    def moments(self, *args: Any) -> Any:
        gathered = super().moments(*args)
        return {p: replace(layer, mean=layer.mean[:, ::-1]) for p, layer in gathered.items()}


class FollowsWithoutBias(TorchAdapter):
    def run_paired(
        self, model: Any, calibration: Any, layers: Any, visit: Any, **options: Any
    ) -> Any:
        def blind(path: str, fit: Any, validation: Any) -> Any:
            return visit(path, None if fit is None else replace(fit, y=fit.y * 0), validation)

        return super().run_paired(model, calibration, layers, Visits(blind, visit.bases), **options)


class FollowsWholeRows(TorchAdapter):
    def run_paired(
        self, model: Any, calibration: Any, layers: Any, visit: Any, **options: Any
    ) -> Any:
        return super().run_paired(model, calibration, layers, Visits(visit), **options)


class RefillsNothing(TorchAdapter):
    def refilled(self, model: Any, path: str, op: Any) -> nn.Module:
        return copy.deepcopy(model.get_submodule(path))


WRONG = {
    "moments": GathersTransposed,
    "follow": FollowsWithoutBias,
    "refilled": RefillsNothing,
}


def test_every_check_has_a_wrong_adapter() -> None:
    assert WRONG.keys() == checks_of(learning)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_adapter_fails_the_check_meant_for_it(name: str) -> None:
    fails(name, harness_of(TorchHarness, WRONG[name]))


def test_an_adapter_that_projects_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="projected: sum of y xᵀ has shape"):
        CHECKS["follow"](harness_of(TorchHarness, FollowsWholeRows))
