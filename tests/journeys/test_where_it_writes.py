"""Disks that are full, folders that are not to be written or not to be replaced."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.core.checkpoints.files import contents, normal, sharded, sound

import rankfold as rf
from rankfold.checkpoints import compress as compression
from rankfold.checkpoints import shards as writing

POLICY = rf.Ratio(0.4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sharded(tmp_path / "source")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["allocated", "written", "synced"])
def test_a_full_disk_is_an_error_and_the_next_run_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rf.compress_checkpoint(source, tmp_path / "expected", POLICY)
    before = contents(source)
    write, count = compression.write, 0

    def full_at_the_second(work, part):
        nonlocal count
        count += 1
        if count == 2:
            if where == "allocated":
                monkeypatch.setattr(os, "posix_fallocate", full)
            elif where == "written":
                monkeypatch.setattr(writing._Fresh, "put", full)
            else:
                monkeypatch.setattr(os, "fsync", full)
        return write(work, part)

    with monkeypatch.context() as patched:
        patched.setattr(compression, "write", full_at_the_second)
        with pytest.raises(rf.RankfoldError, match=r"No space left.*files that are finished"):
            rf.compress_checkpoint(source, tmp_path / "out", POLICY)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.rankfold/new-*/*"))) == 1
    assert contents(source) == before
    rf.compress_checkpoint(source, tmp_path / "out", POLICY)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """This process can write none that are larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="has no limits")
def test_a_limit_on_files_is_an_error(source: Path, tmp_path: Path) -> None:
    rf.compress_checkpoint(source, tmp_path / "expected", POLICY)
    for limit in (10, 1000, 3000):
        with pytest.raises(rf.RankfoldError, match="cannot write"), files_of_at_most(limit):
            rf.compress_checkpoint(source, tmp_path / "out", POLICY)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out.rankfold/**/*.part"))
    with files_of_at_most(10_000_000):
        rf.compress_checkpoint(source, tmp_path / "out", POLICY)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="may write everywhere")
def test_a_folder_that_is_not_to_be_written_is_an_error(source: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(rf.RankfoldError, match="cannot write"):
        rf.compress_checkpoint(source, closed / "out", POLICY)
    assert list(closed.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", denied)
        with pytest.raises(rf.RankfoldError, match="cannot write"):
            rf.compress_checkpoint(source, tmp_path / "out", POLICY)
    assert sorted(tmp_path.iterdir()) == before


def test_parents_that_were_made_go_with_a_run_that_failed(source: Path, tmp_path: Path) -> None:
    with pytest.raises(rf.RankfoldError):
        rf.compress_checkpoint(source, tmp_path / "a" / "b" / "out", POLICY, methods=["none"])
    assert sorted(tmp_path.iterdir()) == [source]
    rf.compress_checkpoint(source, tmp_path / "a" / "b" / "out", POLICY)
    assert (tmp_path / "a" / "b" / "out").is_dir()


def refused(source: Path, out: Path, match: str) -> None:
    top = source.parent if source.is_dir() else source.parent.parent
    before = contents(top), sorted(top.rglob("*"))
    with pytest.raises(rf.RankfoldError, match=match):
        rf.compress_checkpoint(source, out, POLICY)
    assert (contents(top), sorted(top.rglob("*"))) == before


def test_what_is_no_folder_to_replace_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    refused(source, tmp_path / "file", "is a file")
    refused(source, tmp_path / "file" / "out", "cannot write")
    refused(source, tmp_path / "own", "thesis.tex")
    refused(source, tmp_path / "link", "is a link")
    refused(source, tmp_path / "broken", "is a link")
    refused(source, tmp_path, "holds")


def test_the_checkpoint_itself_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path)
    for folder in (source, tmp_path / "alias" / "source", source / ".." / "source"):
        refused(source, folder, "the checkpoint itself|is a link|holds")


def test_an_earlier_result_is_not_compressed_into_itself(source: Path, tmp_path: Path) -> None:
    single = sound(tmp_path / "x.safetensors", {"a.weight": ("F32", (20, 30), normal(0, 20, 30))})
    out = tmp_path / "results" / "out"
    rf.compress_checkpoint(single, out, rf.Ratio(0.9))
    (tmp_path / "alias").symlink_to(tmp_path / "results")
    weights = out / "weights.safetensors"
    for checkpoint in (out, weights):
        refused(checkpoint, out, "the checkpoint itself")
        refused(checkpoint, tmp_path / "alias" / "out", "the checkpoint itself")
    refused(weights, weights, "the checkpoint itself")


def test_a_folder_in_that_of_the_checkpoint_is_written(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    rf.compress_checkpoint(source, tmp_path / "expected", POLICY)
    rf.compress_checkpoint(source, source / "small", POLICY)
    assert contents(source / "small") == contents(tmp_path / "expected")
    shutil.rmtree(source / "small")
    assert contents(source) == before
    assert not (source / ".small.rankfold").exists()


def test_what_comes_to_lie_there_meanwhile_is_not_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write = compression.write

    def busy(work, part):
        (out / "thesis.tex").write_text("")
        return write(work, part)

    with monkeypatch.context() as patched:
        patched.setattr(compression, "write", busy)
        with pytest.raises(rf.RankfoldError, match=r"thesis\.tex"):
            rf.compress_checkpoint(source, out, POLICY)
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    monkeypatch.setattr(compression, "write", None)
    rf.compress_checkpoint(source, out, POLICY)  # of finished files


def test_files_have_the_modes_of_new_ones(source: Path, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        rf.compress_checkpoint(source, tmp_path / "out", POLICY)
    finally:
        os.umask(mask)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o640}
