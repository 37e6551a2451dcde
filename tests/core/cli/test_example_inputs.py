"""Example inputs and batches from files of NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rankfold as rf
from rankfold.cli.example_inputs import example_inputs, model_inputs


def stored(file: Path, **arrays: np.ndarray) -> Path:
    np.savez(file, **arrays)
    return file


def test_examples_come_in_batches_of_16_and_the_first_is_the_input(tmp_path: Path) -> None:
    x = np.arange(40 * 3).reshape(40, 3)
    file = stored(tmp_path / "c.npz", x=x, rate=np.array(16000), scale=np.ones(7))
    inputs, batches = example_inputs(None, file)
    assert inputs is not None
    assert batches is not None
    assert inputs["x"].shape == (1, 3)
    assert [len(batch["x"]) for batch in batches] == [16, 16]
    assert (np.concatenate([batch["x"] for batch in batches]) == x[:32]).all()
    # Arrays of another length belong to every batch.
    assert all(batch["rate"] == 16000 and len(batch["scale"]) == 7 for batch in batches)


def test_batches_are_as_large_as_the_example(tmp_path: Path) -> None:
    file = stored(tmp_path / "c.npz", x=np.zeros((11, 3)))
    example = stored(tmp_path / "i.npz", x=np.ones((4, 3)))
    inputs, batches = example_inputs(example, file)
    assert inputs is not None
    assert batches is not None
    assert inputs["x"].shape == (4, 3)
    assert [len(batch["x"]) for batch in batches] == [4, 4]


def test_few_examples_are_one_batch(tmp_path: Path) -> None:
    _, batches = example_inputs(None, stored(tmp_path / "c.npz", x=np.zeros((5, 3))))
    assert batches is not None
    assert [len(batch["x"]) for batch in batches] == [5]


def test_without_files_there_is_nothing() -> None:
    assert example_inputs(None, None) == (None, None)


def test_files_that_hold_no_arrays_by_name_are_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for name, message in (
        ("one.npy", "one array without a name"),
        ("text.npz", "cannot be read"),
        ("empty.npz", "holds no array"),
        ("objects.npz", "cannot be read"),
        ("missing.npz", "cannot be read"),
    ):
        with pytest.raises(rf.RankfoldError, match=message):
            example_inputs(tmp_path / name, None)
    with pytest.raises(rf.RankfoldError, match="has no examples"):
        example_inputs(None, stored(tmp_path / "numbers.npz", rate=np.array(1)))


def seen(array: np.ndarray) -> list[object]:
    """What a framework makes of an array, here its shape and type."""
    return [array.shape, array.dtype.name]


SHAPES: dict[str, tuple[object, object]] = {
    "one": ("1,3,8,8", [(1, 3, 8, 8), "float32"]),
    "of integers": ("2,7:int64", [(2, 7), "int64"]),
    "a list": ([1, 3], [(1, 3), "float32"]),
    "by place": ("1,3 1,5", ([(1, 3), "float32"], [(1, 5), "float32"])),
    "by name": (
        "ids=1,7:int64 mask=1,7",
        {"ids": [(1, 7), "int64"], "mask": [(1, 7), "float32"]},
    ),
    "a table": (
        {"ids": "1,7:int64", "mask": [1, 7]},
        {"ids": [(1, 7), "int64"], "mask": [(1, 7), "float32"]},
    ),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_are_inputs(kind: str) -> None:
    shapes, expected = SHAPES[kind]
    inputs, batches = model_inputs(shapes, None, seen)  # type: ignore[arg-type]
    assert inputs == expected
    assert batches is None


def test_arrays_are_arguments_by_place_or_by_name(tmp_path: Path) -> None:
    a, b = np.zeros((2, 3)), np.zeros((2, 5))
    np.savez(tmp_path / "places.npz", a, b)
    np.savez(tmp_path / "names.npz", a=a, b=b)
    np.savez(tmp_path / "one.npz", b=b)
    first, second = [(2, 3), "float64"], [(2, 5), "float64"]
    assert model_inputs(str(tmp_path / "places.npz"), None, seen)[0] == (first, second)
    assert model_inputs(str(tmp_path / "names.npz"), None, seen)[0] == {"a": first, "b": second}
    assert model_inputs(str(tmp_path / "one.npz"), None, seen)[0] == second


def test_batches_of_a_file_are_made_as_inputs_are(tmp_path: Path) -> None:
    save_file({"x": np.zeros((37, 3), np.float32)}, tmp_path / "c.safetensors")
    inputs, batches = model_inputs(None, str(tmp_path / "c.safetensors"), seen)
    assert inputs == [(1, 3), "float32"]
    assert batches == [[(16, 3), "float32"]] * 2
