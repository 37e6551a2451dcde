"""A stored state is read whole, or the file at fault is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rankfold.errors import RankfoldError
from rankfold.storage.state_checks import read_whole


def test_the_tensors_of_all_parts_are_read(tmp_path: Path) -> None:
    save_file({"a": np.ones((3, 5))}, tmp_path / "1")
    save_file({"b": np.zeros(7)}, tmp_path / "2")
    stored = read_whole((tmp_path / "1", tmp_path / "2"), load_file)
    assert {name: value.shape for name, value in stored.items()} == {"a": (3, 5), "b": (7,)}


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 40])
def test_a_missing_or_damaged_part_is_named(tmp_path: Path, content: bytes | None) -> None:
    save_file({"a": np.ones((3, 5))}, tmp_path / "1")
    if content is not None:
        (tmp_path / "2").write_bytes(content)
    with pytest.raises(RankfoldError, match=r"2'"):
        read_whole((tmp_path / "1", tmp_path / "2"), load_file)


def test_a_type_that_the_framework_lacks_is_told_with_the_file(tmp_path: Path) -> None:
    save_file({"a": np.ones(3)}, tmp_path / "1")

    def load(file: Path) -> dict[str, np.ndarray]:
        raise TypeError(f"no such type in {file.name}")

    with pytest.raises(RankfoldError, match="no such type in 1"):
        read_whole((tmp_path / "1",), load)
