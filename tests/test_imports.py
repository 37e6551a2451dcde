"""Which folder may import which: downwards only, and no circle of files anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "rankfold": (
        ("console",),
        ("errors",),
        ("faults", "progress", "state"),
        ("linalg",),
        ("ops",),
        ("calibration",),
        ("decompose",),
        ("layers",),
        ("report",),
        ("plan",),
        ("policies",),
        ("adapters",),
        ("plugins",),
        ("builtin", "contracts", "equal_cost", "hookspecs", "reference", "registry", "storage"),
        ("pipeline",),
        ("checkpoints",),
        ("testing", "cli"),
    ),
    "rankfold_torch": (
        ("torch_internals",),
        ("operation_mode",),
        (
            "temporary_changes",
            "tensor_rules",
            "pickle_reader",
            "meta_tensors",
            "offloading",
            "optimizers",
        ),
        ("model_state",),
        ("layers",),
        ("usage",),
        ("model_layers", "tracing"),
        ("calibration", "timing"),
        ("paired_run", "surgery", "state_io"),
        ("distillation",),
        ("adapter", "rules", "turns"),
        ("demo",),
    ),
    "rankfold_jax": (
        ("versions", "tensor_rules", "orbax_reader"),
        ("jaxpr",),
        ("layouts",),
        ("functional", "state_io"),
        ("calibration",),
        ("paired_run",),
        ("adapter_base",),
        ("linen", "nnx"),
        ("demo",),
    ),
}
FOLDERS = {"rankfold": "core", "rankfold_torch": "backends", "rankfold_jax": "backends"}


def modules(package: str) -> dict[str, Path]:
    root = ROOT / FOLDERS[package]
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted((root / package).rglob("*.py"))
    }


def imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Every import of a file: at the top, inside functions and for type checkers alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_a_floor(package: str) -> None:
    floors = [name for floor in ROOMS[package] for name in floor]
    assert sorted(floors) == sorted({room(module) for module in modules(package)} - {""})


@pytest.mark.parametrize("package", ROOMS)
def test_imports_go_downwards(package: str) -> None:
    floor = {name: level for level, names in enumerate(ROOMS[package]) for name in names}
    known = modules(package)
    upward = [
        f"{module} imports {other}"
        for module, file in known.items()
        for other in imported(file, known)
        if room(module) and room(other) != room(module)
        if floor[room(other)] >= floor[room(module)] or not room(other)
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("package", ROOMS)
def test_files_import_in_no_circle(package: str) -> None:
    known = modules(package)
    arrows = {module: set(imported(file, known)) - {module} for module, file in known.items()}
    while leaves := {module for module, others in arrows.items() if not others}:
        arrows = {m: others - leaves for m, others in arrows.items() if m not in leaves}
    assert not arrows, f"in or above a circle: {sorted(arrows)}"


@pytest.mark.parametrize("package", ["rankfold_torch", "rankfold_jax", "rankfold"])
def test_packages_import_none_that_stands_above_them(package: str) -> None:
    above = {"rankfold": {"rankfold_torch", "rankfold_jax"}}.get(
        package, {"rankfold_torch", "rankfold_jax"} - {package}
    ) | {"rankfold_transformers", "rankfold_timm", "rankfold_onnx"}
    for module, file in modules(package).items():
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & above, module


STAGES = ("session", "calibrate", "model_layers", "allocation", "refit", "replacement")
"""Stages of a call; `execution` runs those from allocation on, and `api` all."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_takes_the_data_of_earlier_ones_and_calls_none(stage: str) -> None:
    folder = ROOT / "core" / "rankfold" / "pipeline"
    earlier = {f"rankfold.pipeline.{name}" for name in STAGES[: STAGES.index(stage)]}
    called = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse((folder / f"{stage}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in earlier
        for alias in node.names
        if not alias.name[0].isupper()
    ]
    assert not called
