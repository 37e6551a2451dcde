"""What is asked of the plugin of a library that opens folders as models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan
from rankfold.plugins.hookspecs import ModelFolder
from rankfold.plugins.registry import registry
from rankfold.storage.model_folders import (
    conversions_of,
    files_beside,
    kind_of_checkpoint,
    kind_of_model,
    read_settings,
)

HERE = "tests.core.storage.test_model_folders"


class Model:
    pass


def beside(folder: Path, settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    return settings["files"]


def broken(*arguments: Any) -> None:
    raise KeyError("no such thing")


KIND = ModelFolder(
    name="library",
    model_types=(f"{HERE}:Model",),
    settings=("files", "shape"),
    weights="part",
    save=f"{HERE}:broken",
    beside=f"{HERE}:beside",
    conversions=f"{HERE}:broken",
    refusals=f"{HERE}:broken",
    names=f"{HERE}:broken",
)


def test_a_checkpoint_is_known_by_all_entries_of_its_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry(), "model_folders", {"library": KIND})
    assert kind_of_checkpoint({"files": 1, "shape": 2, "other": 3}) is KIND
    assert kind_of_checkpoint({"files": 1}) is None
    assert kind_of_checkpoint({}) is None


def test_a_model_is_known_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry(), "model_folders", {"library": KIND})
    monkeypatch.setattr("rankfold.storage.model_folders.imported", lambda target: Model)
    assert kind_of_model(Model()) is KIND
    assert kind_of_model(object()) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../up": b""}, "'../up' is no file of the folder"),
        ({"config.json": "text"}, "'config.json' is no file"),
    ],
)
def test_files_that_lead_elsewhere_are_refused(
    files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = {"files": files}
    with pytest.raises(RankfoldError, match=message):
        files_beside(KIND, tmp_path, settings, Plan(layers=()))
    assert files_beside(KIND, tmp_path, {"files": {"a": b"b"}}, Plan(layers=())) == {"a": b"b"}


def test_a_fault_of_the_plugin_names_it() -> None:
    with pytest.raises(RankfoldError, match=r"plugin 'library': .*broken.*no such thing"):
        conversions_of(KIND, {}, {})


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1}'])
def test_settings_are_an_object_or_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert read_settings(tmp_path) == (json.loads(content) if content == '{"a": 1}' else {})
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "config.json").symlink_to(tmp_path / "config.json")
    assert read_settings(tmp_path / "link") == {}
