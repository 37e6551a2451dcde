"""What is said of inputs on which a model fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankfold.calibration.input_mistakes import taken_as_arguments, told_of

ERROR = TypeError("conv() takes nothing of the kind")
X = np.ones((2, 3))


class Loader:
    def __iter__(self) -> Any:
        return iter([X])


class Dataset:
    def __getitem__(self, index: int) -> Any:
        return X


ODD = {
    "shape": ((1, 3, 32), "(1, 3, 32) looks like a shape; give an array of that shape"),
    "shape in a list": ([1, 3], "(1, 3) looks like a shape"),
    "array": (X, "an array of NumPy is among them; give tensor(array)"),
    "array by name": ({"x": X}, "an array of NumPy is among them"),
    "text": ("1,3", "a text is among them"),
    "loader": (Loader(), "a Loader is among them; give what the model takes of one of its batches"),
    "data set": ((Dataset(),), "a Dataset is among them"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_inputs_are_told_in_place_of_the_frameworks_text(case: str) -> None:
    inputs, hint = ODD[case]
    text = told_of(ERROR, inputs, "tensor(array)")
    assert text.startswith(f"TypeError: {hint}")
    assert "conv()" not in text


@pytest.mark.parametrize("inputs", [(), 5, (X, 5), [X, None], {"x": X, "flag": True}, object()])
def test_of_other_inputs_the_error_is_told(inputs: Any) -> None:
    assert told_of(ERROR, inputs) == "TypeError: conv() takes nothing of the kind"


def test_items_that_are_all_taken_as_arguments_are_counted() -> None:
    assert "all of its 2 items are taken as arguments" in taken_as_arguments((X, X))
    assert taken_as_arguments(X) == taken_as_arguments((X,)) == taken_as_arguments({"x": X}) == ""
