from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from rankfold.cli.plans import plan_at
from rankfold.errors import RankfoldError
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.storage.saved_plan import Saved

PLAN = Plan(layers=(LayerPlan(path="a", reason="tied"),))


def result(folder: Path) -> Path:
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"content")
    saved = Saved.of(PLAN, folder, {"weights.safetensors": "0"})
    (folder / "plan.json").write_bytes(msgspec.json.encode(saved))
    return folder


def test_a_plan_is_read_from_a_folder_and_from_the_record_in_it(tmp_path: Path) -> None:
    folder = result(tmp_path / "out")
    assert plan_at(folder) == PLAN
    assert plan_at(folder / "plan.json") == PLAN


def test_a_file_that_is_a_plan_may_have_any_name(tmp_path: Path) -> None:
    for name in ("mine.json", "plan.json"):
        (tmp_path / name).write_text(PLAN.to_json())
        assert plan_at(tmp_path / name) == PLAN


def test_what_is_no_plan_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(RankfoldError, match="not a rankfold plan"):
        plan_at(tmp_path / "mine.json")
    with pytest.raises(RankfoldError, match="missing or not a plain file"):
        plan_at(tmp_path / "nowhere")
    (tmp_path / "mine.json").chmod(0)
    if not os.access(tmp_path / "mine.json", os.R_OK):  # as root everything can be read
        with pytest.raises(RankfoldError, match="cannot be read"):
            plan_at(tmp_path / "mine.json")
