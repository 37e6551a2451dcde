from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def distance() -> Callable[[Any, Any], float]:
    """‖a − b‖ / ‖b‖."""

    def between(a: Any, b: Any) -> float:
        left, right = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
        assert left.shape == right.shape
        return float(np.linalg.norm(left - right) / np.linalg.norm(right))

    return between
