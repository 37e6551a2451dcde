from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rankfold.storage.files import sha256_of, sync, write_whole


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in (b"first", b"second and longer"):
        write_whole(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"mine")
    for name in ("a", "a.fresh"):
        (tmp_path / name).symlink_to(target)
    write_whole(tmp_path / "a", b"content")
    assert target.read_bytes() == b"mine"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"content"


def test_a_write_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a", b"first")

    def full(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_files_and_folders_are_flushed_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path):
        sync(path)
    for handle in flushed:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
    assert len(flushed) == 2
