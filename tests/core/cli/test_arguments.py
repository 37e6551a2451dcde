from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankfold.cli.arguments import called, imported, names_code
from rankfold.errors import RankfoldError


@pytest.mark.parametrize(
    ("text", "is_code"),
    [
        ("mymodels:make", True),
        ("my.models.v2:make_it", True),
        ("1,3,224,224", False),
        ("C:\\models\\x.pt", False),
        ("ids=1,77:int64", False),
        ("mymodels:", False),
        ("a:b:c", False),
        ("über.modul:größe", True),
    ],
)
def test_code_is_told_from_paths_and_shapes(text: str, is_code: bool) -> None:
    assert names_code(text) is is_code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    code = "import sys\ndef make(): return 7\ndef leave(): sys.exit(3)\ndef fail(): 1 / 0\n"
    (tmp_path / "of_arguments.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("of_arguments", None)


@pytest.mark.usefixtures("here")
def test_a_module_of_the_current_folder_is_imported() -> None:
    assert called("of_arguments:make") == 7
    assert sys.path.count(str(Path.cwd())) == 1
    imported("of_arguments:make")
    assert sys.path.count(str(Path.cwd())) == 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("of_arguments", "factory 'of_arguments'; write package.module:factory"),
        (":make", "write package.module:factory"),
        ("no.such:make", "cannot be imported: .*No module named 'no'"),
        ("of_arguments:nothing", "cannot be imported: .*nothing"),
        ("of_arguments:fail", "'of_arguments:fail' failed: .*division"),
        ("of_arguments:leave", r"failed: it calls sys\.exit\(3\); keep that out"),
    ],
)
def test_what_cannot_be_imported_or_called_says_why(target: str, message: str) -> None:
    with pytest.raises(RankfoldError, match=message):
        called(target, "factory")
