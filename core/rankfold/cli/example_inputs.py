"""Inputs of a model from files of NumPy: arrays by the names of the inputs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array

_BATCH = 16
"""Examples that a model is run on at a time: enough for its products, few for its memory."""


def example_inputs(
    inputs: Path | None, calibration: Path | None
) -> tuple[dict[str, Array] | None, list[dict[str, Array]] | None]:
    """Return example inputs, and batches of calibration data as large as these.

    Without example inputs the first of the calibration data serves, and batches have 16 examples.

    Args:
        inputs: an .npz file of inputs by name; None for none.
        calibration: an .npz file of such arrays with the examples along their first axes; arrays
            of another length, such as numbers, belong to every batch.

    Raises:
        RankfoldError: a file cannot be read.
    """
    example = None if inputs is None else _arrays(inputs)
    if calibration is None:
        return example, None
    arrays = _arrays(calibration)
    count = max((len(array) for array in arrays.values() if array.ndim), default=0)
    if not count:
        raise RankfoldError(f"calibration {str(calibration)!r} has no examples")
    size = _BATCH if example is None else max(1, _count(example))

    def part(first: int, size: int) -> dict[str, Array]:
        return {
            name: array[first : first + size] if array.ndim and len(array) == count else array
            for name, array in arrays.items()
        }

    # The last examples are left out where they do not fill a batch: a model may take no smaller.
    whole = max(size, count - count % size) if size <= count else count
    batches = [part(first, size) for first in range(0, whole, size)]
    return (part(0, 1) if example is None else example), batches


def _count(example: dict[str, Array]) -> int:
    return max((len(array) for array in example.values() if array.ndim), default=1)


def _arrays(file: Path) -> dict[str, Array]:
    try:
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("it holds one array without a name; use numpy.savez(file, x=...)")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RankfoldError(f"{str(file)!r} cannot be read as an .npz file: {error}") from None
    if not arrays:
        raise RankfoldError(f"{str(file)!r} holds no array")
    return arrays
