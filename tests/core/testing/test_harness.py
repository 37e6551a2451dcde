from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.framework import Model

from rankfold.linalg import Array
from rankfold.testing import Harness, Unsupported
from rankfold.testing.harness import as_float64


class Least(Harness):
    """A harness with nothing but what it has to have."""

    def adapter(self) -> Any:
        return NumpyAdapter()

    def model(self, ops: Any, dtype: str = "float32") -> Any:
        return Model([])

    def call(self, model: Any, x: Array) -> Array:
        return x

    def inputs(self, x: Array, dtype: str = "float32") -> Any:
        return x

    def state(self, model: Any) -> Mapping[str, Array]:
        return {}


@pytest.mark.parametrize(
    ("method", "arguments", "missing"),
    [
        ("shared", (None,), "shared layer"),
        ("tied", (None,), "tied weights"),
        ("gradients", (None, None), "gradients"),
        ("compiled", (None,), "compilation"),
        ("set_training", (None, True), "modes"),
        ("training", (None,), "modes"),
    ],
)
def test_what_is_not_written_is_unsupported(
    method: str, arguments: tuple[Any, ...], missing: str
) -> None:
    with pytest.raises(Unsupported, match=missing):
        getattr(Least(), method)(*arguments)


def test_what_every_harness_has_must_be_written() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Harness()  # type: ignore[abstract]  # on purpose


def test_arrays_of_any_float_are_numbers_of_double_precision() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = as_float64(np.array([0.5, -2.0]).astype(ml_dtypes.bfloat16))
    assert array.dtype == np.float64
    assert array.tolist() == [0.5, -2.0]
