"""The files of a result are told from those of others by its plan."""

from pathlib import Path

import msgspec
import pytest

from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan
from rankfold.storage.saved_plan import (
    PLAN,
    Saved,
    check_replaceable,
    index_file,
    read_plan,
    weights_file,
)


def result(folder: Path, beside: str = "config.json") -> None:
    for name in ("model.safetensors", "model.safetensors.index.json", beside):
        (folder / name).write_bytes(b"content")
    saved = Saved.of(Plan(layers=()), folder, {"model.safetensors": "0"}, beside={beside: "0"})
    (folder / PLAN).write_bytes(msgspec.json.encode(saved))


def test_a_result_with_files_beside_it_is_replaceable(tmp_path: Path) -> None:
    result(tmp_path)
    check_replaceable(tmp_path)
    assert read_plan(tmp_path).stem == "model"


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json.bak", "other.safetensors"])
def test_files_that_the_plan_does_not_name_are_not_replaced(name: str, tmp_path: Path) -> None:
    result(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(RankfoldError, match=f"holds '{name}'"):
        check_replaceable(tmp_path)


def test_a_folder_of_the_name_of_a_file_is_not_replaced(tmp_path: Path) -> None:
    result(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(RankfoldError, match=r"holds 'config\.json'"):
        check_replaceable(tmp_path)


def test_without_a_plan_only_files_of_rankfold_s_own_names_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    check_replaceable(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RankfoldError, match=r"holds 'model\.safetensors'"):
        check_replaceable(tmp_path)


def test_files_have_the_names_that_loaders_look_for() -> None:
    assert weights_file("model") == "model.safetensors"
    assert weights_file("model", 2, 3) == "model-00002-of-00003.safetensors"
    assert index_file("model") == "model.safetensors.index.json"
