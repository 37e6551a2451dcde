from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rankfold.errors import RankfoldError
from rankfold.storage.safetensors_file import Safetensors
from rankfold.storage.safetensors_header import viewed

TENSORS = {
    "a": np.arange(24, dtype=np.float32).reshape(4, 6),
    "b": np.arange(5, dtype=np.int64),
    "none": np.zeros((0, 3), np.float32),
}


def test_tensors_are_read_one_by_one_as_they_were_written(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "np"})
    stored = Safetensors(tmp_path / "a.safetensors")
    assert stored.header.metadata == {"format": "np"}
    assert stored.header.entries.keys() == TENSORS.keys()
    entries = stored.header.entries
    np.testing.assert_array_equal(viewed(stored.data(entries["a"]), entries["a"]), TENSORS["a"])
    assert stored.data(entries["b"]).tobytes() == TENSORS["b"].tobytes()
    assert stored.data(entries["none"]).size == 0


def test_a_part_of_a_tensor_is_read_alone(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    stored = Safetensors(tmp_path / "a.safetensors")
    whole = stored.header.entries["a"]
    part = replace(whole, begin=whole.begin + 2 * 24, size=24, shape=(6,))
    np.testing.assert_array_equal(viewed(stored.data(part), part), TENSORS["a"][2])


def test_a_file_that_has_become_shorter_is_an_error_and_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(TENSORS, file)
    stored = Safetensors(file)
    entries = stored.header.entries
    os.truncate(file, file.stat().st_size - 1)
    last = max(entries.values(), key=lambda e: e.begin + e.size)
    with pytest.raises(RankfoldError, match="has been cut short meanwhile"):
        stored.data(last)
    file.unlink()
    with pytest.raises(RankfoldError, match="cannot be read"):
        stored.data(last)
