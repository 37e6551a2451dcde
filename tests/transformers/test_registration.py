"""The method is registered with transformers whichever is imported first."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankfold_transformers import registration


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Modules in the places of transformers' registry and of what registers with it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "_REGISTRY", "stand_in_registry")
    monkeypatch.setattr(registration, "_QUANTIZER", "stand_in_quantizer")
    before = [f for f in sys.meta_path if not isinstance(f, registration._Awaited)]
    monkeypatch.setattr(sys, "meta_path", before)
    (tmp_path / "stand_in_quantizer.py").write_text(
        "import sys\nassert sys.modules['stand_in_registry'].register_quantizer\n"
    )

    def write(text: str) -> None:
        (tmp_path / "stand_in_registry.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    for name in ("stand_in_registry", "stand_in_quantizer"):
        sys.modules.pop(name, None)


def awaited() -> int:
    return sum(isinstance(finder, registration._Awaited) for finder in sys.meta_path)


def test_it_is_registered_once_transformers_is_imported(stand_in: Callable[[str], None]) -> None:
    stand_in("def register_quantizer(): ...")
    registration.register()
    registration.register()
    assert (awaited(), registration.is_registered()) == (1, False)
    module = importlib.import_module("stand_in_registry")
    assert (awaited(), registration.is_registered()) == (0, True)
    assert type(module.__loader__).__name__ == "SourceFileLoader"


def test_it_is_registered_at_once_where_transformers_is_imported(
    stand_in: Callable[[str], None],
) -> None:
    stand_in("def register_quantizer(): ...")
    importlib.import_module("stand_in_registry")
    registration.register()
    assert (awaited(), registration.is_registered()) == (0, True)


def test_a_transformers_without_an_extension_point_is_left_alone(
    stand_in: Callable[[str], None],
) -> None:
    stand_in("")
    registration.register()
    importlib.import_module("stand_in_registry")
    assert not registration.is_registered()
