"""Results of `compress_checkpoint` whose plan.json was edited, with hashes that fit."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from tests.core.checkpoints.files import indexed, sound
from torch import nn

import rankfold as rf


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    owner = {}
    for place in (0, 2):
        name = f"model-{place}.safetensors"
        found = {n: t for n, t in model().state_dict().items() if n.startswith(f"{place}.")}
        tensors = {n: ("F32", tuple(t.shape), t.numpy().tobytes()) for n, t in found.items()}
        sound(tmp_path / "source" / name, tensors)
        owner |= dict.fromkeys(tensors, name)
    indexed(tmp_path / "source", owner)
    rf.compress_checkpoint(tmp_path / "source", tmp_path / "out", rf.Ratio(0.4), include="*")
    return tmp_path / "out"


def edited(folder: Path, change) -> None:
    found = json.loads((folder / "plan.json").read_text())
    change(found)
    (folder / "plan.json").write_text(json.dumps(found))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_folder_is_loaded(saved: Path) -> None:
    small = rf.load(model(), saved)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model().parameters())


NAMES = [
    "../x.safetensors",
    "/etc/passwd",
    "sub/weights.safetensors",
    "..",
    "",
    "weights.safetensors\0",
    "weights-00001-of-00002.safetensors\n",
    "plan.json",
    "weights-1-of-2.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_other_names_are_refused(saved: Path, name: str) -> None:
    edited(saved, lambda found: found["files"].update({name: "0" * 64}))
    with pytest.raises(rf.RankfoldError, match="no rankfold writes"):
        rf.load(model(), saved)


def test_files_that_are_missing_or_too_many_are_refused(saved: Path) -> None:
    one, two = sorted(saved.glob("*.safetensors"))
    edited(saved, lambda found: found["files"].pop(two.name))
    with pytest.raises(rf.RankfoldError, match="does not fit the model"):
        rf.load(model(), saved)
    edited(saved, lambda found: found["files"].update({two.name: digest(two)}))
    rf.load(model(), saved)
    third = one.with_name("weights-00003-of-00003.safetensors")
    third.write_bytes(one.read_bytes())
    edited(saved, lambda found: found["files"].update({third.name: digest(third)}))
    with pytest.raises(rf.RankfoldError, match="is in"):
        rf.load(model(), saved)
    third.unlink()
    os.mkfifo(third)
    with pytest.raises(rf.RankfoldError, match="not a plain file"):
        rf.load(model(), saved)


PLANS = {
    "deep": b'{"rankfold": 2, "plan": ' + b"[" * 100_000,
    "a number": b"9" * 100_000,
    "a long version": b'{"rankfold": ' + b"9" * 100_000 + b"}",
    "half a character": b'{"rankfold": 2, "job": "\\ud800"}',
    "nothing": b"",
}


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS)
def test_a_plan_that_is_none_is_refused(saved: Path, text: bytes) -> None:
    (saved / "plan.json").write_bytes(text)
    with pytest.raises(rf.RankfoldError, match="not a rankfold plan"):
        rf.load(model(), saved)


def test_a_result_said_to_be_of_a_model_is_loaded_or_refused(saved: Path) -> None:
    edited(saved, lambda found: found.update(job=""))
    rf.load(model(), saved)
    edited(saved, lambda found: found["plan"]["layers"].pop())
    with pytest.raises(rf.RankfoldError):
        rf.load(model(), saved)
