"""The tests of a package lie as its modules do; what spans folders is in tests/journeys."""

from __future__ import annotations

import ast
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
DECLARES_ONLY: dict[str, dict[str, str]] = {
    "core": {
        **dict.fromkeys(
            (
                "adapters/base.py",
                "adapters/compressed_models.py",
                "adapters/distils.py",
                "adapters/inputs.py",
                "adapters/loading.py",
                "report/facts.py",
            ),
            "protocols and what they hand over",
        ),
        "plugins/hookspecs.py": "hooks and dataclasses of what plugins declare",
        "builtin.py": "names the methods and the policies, which test_registry.py looks up",
        **dict.fromkeys(
            ("contracts.py", "reference.py", "registry.py"),
            "names of before, all of them in test_hookspecs.py",
        ),
    },
    "torch": {
        "rules.py": "names of before, all of them in layers/test_same_rules.py",
        "turns.py": "names of before, all of them in paired_run/test_coroutine_threads.py",
    },
    "jax": {},
    "transformers": {},
    "timm": {},
    "onnx": {},
}
"""Modules without a test file, since there is nothing in them that could fail, with the reason."""
LOGIC = 3
"""The most statements of a function in such a module."""


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_test_file_is_named_after_a_module(folder: str) -> None:
    tests, package = ROOT / "tests" / folder, ROOT / PACKAGES[folder]
    files = [file.relative_to(tests) for file in tests.rglob("test_*.py")]
    assert files
    modules = [file.with_name(file.name.removeprefix("test_")) for file in files]
    assert [module for module in modules if not (package / module).exists()] == []


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_module_has_a_test_file_of_its_name(folder: str) -> None:
    tests, package = ROOT / "tests" / folder, ROOT / PACKAGES[folder]
    untested = {
        module.as_posix()
        for module in (file.relative_to(package) for file in package.rglob("*.py"))
        if module.stem not in ("__init__", "__main__")
        if not (tests / module.with_name(f"test_{module.name}")).exists()
    }
    listed = DECLARES_ONLY[folder].keys()
    assert untested - listed == set(), "without a test file"
    assert listed - untested == set(), "tested or no longer there: take it out of the list"


@pytest.mark.parametrize("folder", PACKAGES)
def test_what_is_listed_as_declaring_only_has_no_logic(folder: str) -> None:
    long = [
        f"{module}: {function.name}"
        for module in DECLARES_ONLY[folder]
        for function in ast.walk(ast.parse((ROOT / PACKAGES[folder] / module).read_text()))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        if sum(isinstance(node, ast.stmt) for node in ast.walk(function))
        - 1
        - (ast.get_docstring(function) is not None)
        > LOGIC
    ]
    assert long == []
