"""A checkpoint is read as what it holds, layer by layer."""

from pathlib import Path

import numpy as np
import pytest
from tests.core.checkpoints.files import normal, sound

import rankfold as rf
from rankfold.adapters.capabilities import capabilities
from rankfold.checkpoints.planner import CheckpointAdapter
from rankfold.checkpoints.reader import Checkpoint
from rankfold.errors import RankfoldError


def checkpoint(file: Path, name: str) -> Checkpoint:
    sound(file, {f"{name}.weight": ("F32", (11, 7), normal(0, 11, 7))})
    return Checkpoint(file)


def test_layers_are_those_of_the_checkpoint_that_is_asked_about(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "first.safetensors", "a")
    second = checkpoint(tmp_path / "second.safetensors", "b")
    adapter = CheckpointAdapter()
    assert list(adapter.layer_tensors(first)) == ["a"]
    assert list(adapter.layer_tensors(second)) == ["b"]
    assert list(adapter.layers(first)) == ["a"]


def test_a_pattern_is_checked_in_every_checkpoint(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "first.safetensors", "a")
    second = checkpoint(tmp_path / "second.safetensors", "b")
    adapter = CheckpointAdapter(inputs={"a": (1,)})
    assert list(adapter.layer_tensors(first)) == ["a"]
    with pytest.raises(RankfoldError, match="'a' matches no layer"):
        adapter.layer_tensors(second)


def test_nothing_is_offered_that_a_file_cannot_do() -> None:
    adapter = CheckpointAdapter()
    assert not any(hasattr(adapter, name) for name in ("build", "run", "replace", "load_weights"))
    offered = capabilities(adapter)
    assert offered.distributed is adapter
    assert offered.names_outputs is adapter
    assert offered.calibrates is offered.times is offered.expands is None


def test_an_interpolative_stage_is_left_alone(tmp_path: Path) -> None:
    order = np.arange(11, dtype=np.int64).tobytes()
    tensors = {
        "fc.0.weight": ("F32", (4, 7), normal(0, 4, 7)),
        "fc.1.weight": ("F32", (7, 4), normal(1, 7, 4)),
        "fc.1.order": ("I64", (11,), order),
        "sorted.weight": ("F32", (11, 7), normal(2, 11, 7)),
        "sorted.order": ("F32", (11,), normal(3, 11)),  # no order of channels
    }
    layer_tensors = CheckpointAdapter().layer_tensors(
        Checkpoint(sound(tmp_path / "a.safetensors", tensors))
    )
    assert "interpolative already" in layer_tensors["fc.1"].refusal
    assert not layer_tensors["fc.0"].refusal
    assert not layer_tensors["sorted"].refusal


def test_a_folder_with_interpolative_stages_is_compressed_anew(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.Linear(64, 32)).eval()
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    once = rf.compress_checkpoint(
        tmp_path / "whole.pt", tmp_path / "once", rf.Ratio(0.7), methods=["svd_id"]
    )
    assert {layer.method for layer in once.replaced} == {"svd_id"}
    twice = rf.compress_checkpoint(tmp_path / "once", tmp_path / "twice", rf.Ranks(3))
    assert twice.replaced
    assert twice["0.1"].reason.startswith("interpolative already")
    back = rf.load(rf.load(model, tmp_path / "once"), tmp_path / "twice")
    assert back(torch.ones(1, 48)).shape == (1, 32)
