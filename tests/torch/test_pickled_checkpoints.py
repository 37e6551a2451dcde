"""State dicts in .pt files: nothing that they hold is run, and what is none is refused."""

import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import rankfold as rf

POLICY = rf.Ratio(0.4)


class Code:
    """What unpickling would run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "fc.weight": torch.randn(12, 20, generator=generator),
        "fc.bias": torch.randn(12, generator=generator),
        "steps": torch.tensor(3),
    }


def refused(file: Path, match: str | None = None) -> None:
    before = sorted(file.parent.iterdir())
    with pytest.raises(rf.RankfoldError, match=match):
        rf.compress_checkpoint(file, file.parent / "out", POLICY)
    assert sorted(file.parent.iterdir()) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, suffix: str, legacy: bool) -> None:
    file, marker = tmp_path / f"x{suffix}", tmp_path / "marker"
    content = {**state(), "code": Code(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    refused(file)
    file.write_bytes(pickle.dumps(Code(marker)))
    refused(file)
    assert not marker.exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4), tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "cannot be read")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_is_what_the_same_tensors_are(tmp_path: Path, legacy: bool) -> None:
    torch.save(state(), tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", POLICY)
    found = load_file(tmp_path / "out" / "weights.safetensors")
    assert found["steps"] == 3
    assert np.array_equal(found["fc.1.bias"], state()["fc.bias"].numpy())


CONTENTS = {
    "a tensor": torch.ones(2, 3),
    "a list": [torch.ones(2, 3)],
    "numbers": {"fc.weight": 1},
    "other names": {1: torch.ones(2, 3)},
    "an empty name": {"": torch.ones(2, 3), **state()},
    "a name with a null": {"a\0": torch.ones(2, 3), **state()},
    "half a character": {"\ud800.weight": torch.ones(2, 3), **state()},
    "the name of metadata": {"__metadata__": torch.ones(2, 3), **state()},
    "nothing": {},
    "a sparse tensor": {**state(), "a": torch.eye(3).to_sparse()},
    "more than the file holds": {**state(), "a.weight": torch.ones(1).expand(2**40)},
    "much more than the file holds": {**state(), "a.weight": torch.ones(1).expand(2**30, 2**30)},
    "no values": {**state(), "a.weight": torch.ones(4, 5, device="meta")},
    "two numbers in one": {**state(), "a": torch.ones(3, dtype=torch.complex128)},
    "quantised": {**state(), "a": torch.ones(3, dtype=torch.uint16)},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_state_dict_of_plain_tensors_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "x.pt")
    refused(tmp_path / "x.pt")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "sound")
    sound = (tmp_path / "sound").read_bytes()
    file = tmp_path / "x.pt"
    for content in (b"", b"PK\x03\x04", sound[: len(sound) // 2], sound[100:], b"\x80\x02", b"x"):
        file.write_bytes(content)
        refused(file)
    file.unlink()
    os.mkfifo(file)
    refused(file, "not a plain file")
    file.unlink()
    file.symlink_to(tmp_path / "sound")
    refused(file, "is a link")


def test_corrupted_files_are_read_or_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "sound")
    sound = (tmp_path / "sound").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(sound)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        (tmp_path / "x.pt").write_bytes(data)
        with suppress(rf.RankfoldError):
            rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", POLICY)
        assert not (tmp_path / ".out.rankfold").exists()


def test_shared_views_conjugates_and_parameters_are_copied(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        **state(),
        "one": base,
        "view": base.T[1:],
        "conj": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negated": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "parameter": nn.Parameter(base + 1),
        "nothing": torch.empty(0, 5),
    }
    torch.save(content, tmp_path / "x.pt")
    rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", POLICY)
    found = load_file(tmp_path / "out" / "weights.safetensors")
    for name, tensor in content.items():
        if name in found:
            assert np.array_equal(found[name], tensor.detach().resolve_conj().resolve_neg().numpy())
    assert {"one", "view", "conj", "negated", "parameter", "nothing"} <= found.keys()
