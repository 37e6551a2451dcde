from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.core.checkpoints.files import normal, sound

import rankfold as rf
from rankfold.checkpoints.arguments import (
    check_call,
    dropped_names,
    layers_of,
    moments_file,
    opened,
    target_of,
)
from rankfold.checkpoints.planner import CheckpointAdapter
from rankfold.checkpoints.reader import Checkpoint
from rankfold.errors import RankfoldError


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    tensors = {
        "a.weight": ("F32", (11, 7), normal(0, 11, 7)),
        "a.bias": ("F32", (11,), normal(1, 11)),
        "norm.weight": ("F32", (7,), normal(2, 7)),
    }
    return Checkpoint(sound(tmp_path / "in" / "x.safetensors", tensors))


@pytest.mark.parametrize("executor", [3, ThreadPoolExecutor, object()])
def test_what_is_no_executor_is_named(executor: Any) -> None:
    with pytest.raises(RankfoldError, match=r"executor: .*give a concurrent\.futures\.Executor"):
        check_call(rf.VBMF(), executor)


def test_a_policy_that_has_to_see_models_or_times_is_refused() -> None:
    check_call(rf.Budget(params=0.5), None)
    for budget, what in (
        (rf.Budget(latency=0.5), "times"),
        (rf.Budget(drop=0.1, evaluate=len), "models"),
    ):
        with pytest.raises(RankfoldError, match=f"needs the model itself, to look at {what}"):
            check_call(budget, None)


def test_a_checkpoint_is_opened_by_an_absolute_path(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.folder)
    assert opened("x.safetensors", None).path == source.path


def test_the_result_is_not_written_over_the_checkpoint(source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source.folder)
    for output in (source.path, source.folder, tmp_path / "link", source.folder / ".." / "in"):
        with pytest.raises(RankfoldError, match="is the checkpoint itself; name another folder"):
            target_of(output, source)
    assert target_of(tmp_path / "in" / ".." / "out", source) == tmp_path / "out"


def test_a_link_in_the_place_of_the_result_is_refused(source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RankfoldError, match="is a link"):
        target_of(tmp_path / "out", source)


def test_no_moments_are_no_file(tmp_path: Path) -> None:
    assert moments_file(None) is None
    with pytest.raises(RankfoldError, match="nothing"):
        moments_file(tmp_path / "nothing")


def test_a_checkpoint_without_layers_names_what_they_are_known_by(tmp_path: Path) -> None:
    empty = Checkpoint(sound(tmp_path / "x.safetensors", {"n": ("F32", (7,), normal(2, 7))}))
    with pytest.raises(RankfoldError, match=r"no tensor that is known .*\.kernel or \.embedding"):
        layers_of(empty, CheckpointAdapter())


def test_tensors_of_no_layer_can_be_dropped(source: Checkpoint) -> None:
    layers = layers_of(source, CheckpointAdapter())
    assert list(layers) == ["a"]
    assert dropped_names(source, layers, "norm.*") == {"norm.weight"}
    assert dropped_names(source, layers, ()) == frozenset()
    with pytest.raises(RankfoldError, match=r"drop: 'head\.\*' matches no tensor"):
        dropped_names(source, layers, ["norm.*", "head.*"])
    for pattern in ("a.bias", "*.weight"):
        with pytest.raises(RankfoldError, match=r"'a\.weight' or its bias is of a layer"):
            dropped_names(source, layers, pattern)
