"""A checkpoint is read as what it holds, layer by layer."""

from pathlib import Path

import pytest
from tests.core.checkpoints.files import normal, sound

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
    assert list(adapter.slots(first)) == ["a"]
    assert list(adapter.slots(second)) == ["b"]
    assert list(adapter.layers(first)) == ["a"]


def test_a_pattern_is_checked_in_every_checkpoint(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "first.safetensors", "a")
    second = checkpoint(tmp_path / "second.safetensors", "b")
    adapter = CheckpointAdapter(inputs={"a": (1,)})
    assert list(adapter.slots(first)) == ["a"]
    with pytest.raises(RankfoldError, match="'a' matches no layer"):
        adapter.slots(second)


def test_nothing_is_offered_that_a_file_cannot_do() -> None:
    adapter = CheckpointAdapter()
    assert not any(hasattr(adapter, name) for name in ("build", "run", "replace", "load_weights"))
    offered = capabilities(adapter)
    assert offered.distributed is adapter
    assert offered.names_outputs is adapter
    assert offered.calibrates is offered.times is offered.expands is None
