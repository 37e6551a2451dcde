"""The tests of a package lie as its modules do; what spans folders is in tests/journeys."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "core": "core/rankfold",
    "torch": "backends/rankfold_torch",
    "jax": "backends/rankfold_jax",
    "transformers": "plugins/rankfold_transformers",
    "timm": "plugins/rankfold_timm",
    "onnx": "plugins/rankfold_onnx",
}


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_test_file_is_named_after_a_module(folder: str) -> None:
    tests, package = ROOT / "tests" / folder, ROOT / PACKAGES[folder]
    files = [file.relative_to(tests) for file in tests.rglob("test_*.py")]
    assert files
    modules = [file.with_name(file.name.removeprefix("test_")) for file in files]
    assert [module for module in modules if not (package / module).exists()] == []
