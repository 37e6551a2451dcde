"""Links of a snapshot to blobs of the same model are followed, and no others."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rankfold as rf
from rankfold.checkpoints.reader import Checkpoint
from rankfold.storage.hub_cache import followed


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A cache as huggingface_hub lays it out, with a model in it."""
    repository = tmp_path / "hub" / "models--someone--model"
    folder = repository / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    weight = np.random.default_rng(0).standard_normal((24, 17), np.float32)
    save_file({"a.weight": weight}, repository / "blobs" / "f00d")
    (repository / "blobs" / "cafe").write_text('{"hidden_size": 17}')
    (folder / "model.safetensors").symlink_to("../../blobs/f00d")
    (folder / "config.json").symlink_to("../../blobs/cafe")
    return folder


def test_a_snapshot_is_compressed_as_its_files_are(snapshot: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(snapshot)
    assert list(checkpoint.files) == ["model.safetensors"]
    assert checkpoint.settings == {"hidden_size": 17}
    assert checkpoint.is_unchanged()
    rf.compress_checkpoint(snapshot, tmp_path / "one", rf.Ranks(3))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        (copy / name).write_bytes((snapshot / name).read_bytes())
    rf.compress_checkpoint(copy, tmp_path / "two", rf.Ranks(3))
    first, second = (tmp_path / name / "weights.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_a_blob_that_is_exchanged_is_seen(snapshot: Path) -> None:
    checkpoint = Checkpoint(snapshot)
    _ = checkpoint.content
    blob = snapshot.parents[1] / "blobs" / "f00d"
    save_file({"a.weight": np.ones((24, 17), np.float32)}, blob)
    assert not checkpoint.is_unchanged()


@pytest.mark.parametrize(
    "target",
    [
        "../../../other/blobs/f00d",  # of another model
        "../../blobs/../secret",
        "../../refs/main",
        "../../blobs/nothing",
        "../../blobs/link",
        "/etc/hostname",
    ],
)
def test_links_that_lead_elsewhere_are_refused(target: str, snapshot: Path) -> None:
    (snapshot.parents[1] / "secret").write_text("secret")
    (snapshot.parents[1] / "blobs" / "link").symlink_to(snapshot.parents[1] / "secret")
    file = snapshot / "model.safetensors"
    file.unlink()
    file.symlink_to(target)
    assert followed(file) == file
    with pytest.raises(rf.RankfoldError, match="is a link"):
        Checkpoint(snapshot)


def test_a_pickle_under_the_name_of_safetensors_is_not_read(snapshot: Path) -> None:
    (snapshot.parents[1] / "blobs" / "f00d").write_bytes(b"PK\3\4" + os.urandom(64))
    with pytest.raises(rf.RankfoldError):
        Checkpoint(snapshot)
