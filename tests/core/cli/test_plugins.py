"""The list of plugins, and what is wrong with them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tests.core.cli.commands import Run, process

from rankfold.plugins.registry import Problem, Registry, registry


def test_plugins_lists_what_is_installed(tmp_path: Path) -> None:
    done = process("plugins", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("adapter torch", "decomposition tucker2", "policy vbmf", "No problems."):
        assert word in done.stdout


def test_plugins_without_a_framework_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = importlib.import_module("rankfold.cli.plugins")
    monkeypatch.setattr(listing, "find_spec", lambda name: None)
    told = run("plugins", cwd=tmp_path).stdout
    commands = (f"pip install 'rankfold[{name}]'" for name in ("jax", "onnx", "torch"))
    assert " or ".join(commands) in told
    assert "No problems" not in told


def test_problems_are_told_as_they_stand(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = importlib.import_module("rankfold.cli.plugins")
    broken = Registry(adapters=registry().adapters)
    broken.problems.append(Problem("bad", "declare", "[red]no\x1b[2J"))
    monkeypatch.setattr(listing, "registry", lambda: broken)
    told = run("plugins", cwd=tmp_path).stdout
    assert r"plugin 'bad' failed at declare: [red]no\x1b[2J" in told
    assert "No problems" not in told
