"""Tensors that are made of others take the place of these."""

from collections.abc import Mapping

import numpy as np
import pytest

from rankfold.adapters.loading import Conversion
from rankfold.checkpoints.converted import ConvertedTensors
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.storage.safetensors_header import Entry

STORED = {name: Entry(name, "F32", (2, 3), 0, 24) for name in ("a.0", "a.1", "b")}


def stacked(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {"a": np.stack([arrays["a.0"], arrays["a.1"]])}


STACK = Conversion(("a.0", "a.1"), {"a": ("F32", (2, 2, 3))}, stacked)


def read(name: str) -> Array:
    return np.full((2, 3), len(name) + float(name[-1]), np.float32)


def test_a_stack_stands_where_its_first_matrix_was() -> None:
    tensors = ConvertedTensors([STACK], STORED)
    assert "a" in tensors
    assert "a.0" not in tensors
    files = {"b": "one", "a.0": "two", "a.1": "one"}
    assert tensors.owners(files) == {"b": "one", "a": "two"}
    assert tensors.entry("a") == Entry("a", "F32", (2, 2, 3), 0, 48)
    assert np.array_equal(tensors.array("a", read)[1], read("a.1"))
    assert "made of others" in tensors.notes[0]


def test_without_conversions_nothing_changes() -> None:
    tensors = ConvertedTensors([], STORED)
    assert tensors.owners({"b": "one"}) == {"b": "one"}
    assert tensors.notes == ()


@pytest.mark.parametrize(
    ("conversions", "message"),
    [
        ([Conversion(("c",), {"d": ("F32", (2,))}, stacked)], "'c', which is not in the files"),
        ([STACK, STACK], "'a.0', which is not in the files"),
        ([Conversion(("a.0",), {"b": ("F32", (2,))}, stacked)], "makes 'b', which is there"),
    ],
)
def test_conversions_that_do_not_fit_are_refused(
    conversions: list[Conversion], message: str
) -> None:
    with pytest.raises(RankfoldError, match=message):
        ConvertedTensors(conversions, STORED)


def test_a_conversion_that_gives_another_shape_is_an_error() -> None:
    wrong = Conversion(("a.0", "a.1"), {"a": ("F32", (3, 2, 2))}, stacked)
    with pytest.raises(RankfoldError, match=r"'a' is float32 \(2, 2, 3\), not F32 \(3, 2, 2\)"):
        ConvertedTensors([wrong], STORED).array("a", read)
