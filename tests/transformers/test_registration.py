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
    monkeypatch.setattr(registration, "_MODELS", "stand_in_models")
    monkeypatch.setattr(registration, "_WATCH", "stand_in_watch")
    before = [f for f in sys.meta_path if not isinstance(f, registration._Awaited)]
    monkeypatch.setattr(sys, "meta_path", before)
    (tmp_path / "stand_in_quantizer.py").write_text(
        "import sys\nassert sys.modules['stand_in_registry'].register_quantizer\n"
    )

    (tmp_path / "stand_in_models.py").write_text("import stand_in_registry\nMODEL = 1\n")
    (tmp_path / "stand_in_watch.py").write_text(
        "import sys\nassert sys.modules['stand_in_models'].MODEL\n"
    )

    def write(text: str) -> None:
        (tmp_path / "stand_in_registry.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    for name in ("registry", "quantizer", "models", "watch"):
        sys.modules.pop(f"stand_in_{name}", None)


def awaited() -> int:
    return sum(isinstance(finder, registration._Awaited) for finder in sys.meta_path)


def test_it_is_registered_once_transformers_is_imported(stand_in: Callable[[str], None]) -> None:
    stand_in("def register_quantizer(): ...")
    registration.register()
    registration.register()
    assert (awaited(), registration.is_registered()) == (2, False)
    module = importlib.import_module("stand_in_registry")
    assert (awaited(), registration.is_registered()) == (1, True)
    assert type(module.__loader__).__name__ == "SourceFileLoader"


def test_loading_is_watched_once_the_class_of_models_is_there(
    stand_in: Callable[[str], None],
) -> None:
    stand_in("def register_quantizer(): ...")
    registration.register()
    importlib.import_module("stand_in_models")  # which imports the registry on its way
    assert (awaited(), registration.is_registered()) == (0, True)
    assert "stand_in_watch" in sys.modules


def test_it_is_registered_at_once_where_transformers_is_imported(
    stand_in: Callable[[str], None],
) -> None:
    stand_in("def register_quantizer(): ...")
    importlib.import_module("stand_in_registry")
    registration.register()
    assert (awaited(), registration.is_registered()) == (1, True)


def test_a_transformers_without_an_extension_point_is_left_alone(
    stand_in: Callable[[str], None],
) -> None:
    stand_in("")
    registration.register()
    importlib.import_module("stand_in_registry")
    assert not registration.is_registered()
