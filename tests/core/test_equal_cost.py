"""The name of `best_method` from before is found where it was, with a warning."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from tests.core.policies.layers import layer

from rankfold.ops import Linear
from rankfold.plugins import best_method


def test_it_chooses_as_the_function_that_it_is_now(rng: np.random.Generator) -> None:
    sys.modules.pop("rankfold.equal_cost", None)
    with pytest.warns(DeprecationWarning, match="least_error is rankfold.plugins.best_method"):
        old = importlib.import_module("rankfold.equal_cost")
    view = layer(Linear(rng.standard_normal((13, 11))))
    for rank in (0, 3):
        before = old.least_error(view, lambda mode, rank=rank: rank, nothing_found="nothing")
        now = best_method(view, lambda mode, rank=rank: rank, zero_rank_reason="nothing")  # type: ignore[misc]
        assert before == now
