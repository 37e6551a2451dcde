"""The kind of a file is told by its content, and by its name where that is damaged."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from tests.core.checkpoints.files import normal, sound

from rankfold.errors import RankfoldError
from rankfold.plugins.hookspecs import AdapterSpec, FileFormat
from rankfold.storage import file_formats
from rankfold.storage.file_formats import folder_reader_of, readable_within, reader_of

PLAIN = FileFormat("a plain file", (".plain",), (b"PLAIN",), "plain_reader:read", "pip install p")
KEYED = FileFormat("a keyed file", (".keyed",), (b"KEY",), "plain_reader:read", "", keyed=True)
AWAY = FileFormat("an away file", (".away",), (b"AWAY",), "no_such_package:read", "pip install w")

FOLDER = FileFormat("a tree", (), (), "plain_reader:read", "", marker="_TREE")


def read(file: Path, key: str = "") -> str:
    return f"{file.name} {key}"


@pytest.fixture(autouse=True)
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("plain_reader")
    vars(module)["read"] = read
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = AdapterSpec("plain", (), "a:B", (PLAIN, KEYED, AWAY, FOLDER))
    known = types.SimpleNamespace(adapters={"plain": spec})
    monkeypatch.setattr(file_formats, "registry", lambda: known)


def file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_a_safetensors_file_needs_no_plugin_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.plain", "a"):
        source = sound(tmp_path / name, {"a": ("F32", (4, 6), normal(0, 4, 6))})
        assert reader_of(source) is None


def test_a_file_is_known_by_its_signature_or_by_its_name(tmp_path: Path) -> None:
    for name, content in (
        ("a.bin", b"PLAIN..."),
        ("a.plain", b"PLAIN..."),
        ("b.plain", b"rubbish"),
    ):
        assert reader_of(file(tmp_path, name, content)) is read


def test_another_kind_under_the_name_of_safetensors_is_never_read(tmp_path: Path) -> None:
    with pytest.raises(RankfoldError, match=r"is by its content a plain file.*name it \.plain"):
        reader_of(file(tmp_path, "a.safetensors", b"PLAIN..."))
    # Damaged, it is told what is wrong with it as such a file.
    assert reader_of(file(tmp_path, "b.safetensors", b"rubbish")) is None


def test_an_unknown_kind_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RankfoldError, match="not a safetensors file, nor a plain file, nor a key"):
        reader_of(file(tmp_path, "a.bin", b"rubbish"))


def test_a_missing_package_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(RankfoldError, match="no_such_package is missing: pip install w"):
        reader_of(file(tmp_path, "a.away", b"AWAY"))


def test_a_key_is_for_files_with_several_states(tmp_path: Path) -> None:
    reader = reader_of(file(tmp_path, "a.keyed", b"KEY"), "ema")
    assert reader is not None
    assert str(reader(tmp_path / "a.keyed")) == "a.keyed ema"
    with pytest.raises(RankfoldError, match="is a plain file, which holds one state"):
        reader_of(file(tmp_path, "a.plain", b"PLAIN"), "ema")


def test_a_folder_is_known_by_its_marker(tmp_path: Path) -> None:
    assert folder_reader_of(tmp_path) is None
    file(tmp_path, "_TREE", b"PLAIN")
    reader = folder_reader_of(tmp_path)
    assert reader is not None
    assert reader(tmp_path) == f"{tmp_path.name} "
    with pytest.raises(RankfoldError, match="is a tree, which holds one state"):
        folder_reader_of(tmp_path, "ema")


def test_the_folders_that_can_be_read_are_listed_by_their_numbers(tmp_path: Path) -> None:
    for name in ("10/item", "9/item", "other", "far/too/deep"):
        (tmp_path / name).mkdir(parents=True)
        file(tmp_path / name, "_TREE", b"")
    assert readable_within(tmp_path) == ["9/item", "10/item", "other"]
