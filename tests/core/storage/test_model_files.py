"""Files of whole models, of a kind that a plugin declares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import rankfold as rf
from rankfold.plugins.hookspecs import AdapterSpec, ModelFile
from rankfold.plugins.registry import Registry
from rankfold.plugins.validation import Declarations
from rankfold.storage import model_files

TEXT = ModelFile(
    "a text model",
    (".txt", ".text"),
    read="no.such.package:read",
    write="no.such.package:write",
    install="pip install texts",
)


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    registry.adapters["text"] = AdapterSpec("text", ("builtins:bytes",), "a:B", model_files=(TEXT,))
    monkeypatch.setattr(model_files, "registry", lambda: registry)


def test_a_kind_is_known_by_its_suffix_in_any_case() -> None:
    assert model_files.known_kind(Path("a.TXT")) is TEXT
    assert model_files.known_kind(Path("a.b.text")) is TEXT
    assert model_files.known_kind(Path("text")) is None


def test_what_is_no_path_is_the_model_itself() -> None:
    model = object()
    assert model_files.opened(model) is model


def test_an_unknown_kind_is_an_error_that_names_the_known_ones() -> None:
    known = re.escape("known are a text model (.txt, .text)")
    with pytest.raises(rf.RankfoldError, match=known):
        model_files.opened("model.safetensors")


def test_a_missing_package_is_an_error_that_says_how_to_install_it(tmp_path: Path) -> None:
    plan: Any = None
    with pytest.raises(rf.RankfoldError, match="is a text model, and no is missing: pip install"):
        model_files.write_model(b"", plan, tmp_path / "a.txt")


def test_a_result_never_takes_the_place_of_its_original(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("model")
    (tmp_path / "link.txt").symlink_to(source)
    for target in (source, tmp_path / "link.txt"):
        with pytest.raises(rf.RankfoldError, match="is the model itself"):
            model_files.check_writable(target, source)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(rf.RankfoldError, match="is a folder"):
        model_files.check_writable(tmp_path / "folder.txt", source)
    model_files.check_writable(tmp_path / "b.txt", source)


def test_a_target_that_is_no_name_of_a_function_fails_at_declaration() -> None:
    wrong = ModelFile("a text model", (".txt",), read="nowhere", write="a:b", install="")
    spec = AdapterSpec("text", ("builtins:bytes",), "a:B", model_files=(wrong,))
    with pytest.raises(TypeError, match="'nowhere' is not of the form 'module:name'"):
        Declarations.of(lambda hook: [spec] if hook == "rankfold_adapters" else [])
