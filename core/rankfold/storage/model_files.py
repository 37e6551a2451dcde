"""Files that hold a whole model, known by their suffix: opened in place of a model, and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankfold.errors import RankfoldError
from rankfold.faults import contained
from rankfold.plan.plan import Plan
from rankfold.plugins.hookspecs import ModelFile
from rankfold.plugins.registry import registry, resolve


def opened(model: Any) -> Any:
    """Return a model; that of a file where a path is given in its place.

    Raises:
        RankfoldError: no plugin reads such a file, or it cannot be read.
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    path = Path(model)
    return read_model(path, file_kind(path))


def file_kind(path: Path) -> ModelFile:
    """Return the kind of a file by its suffix.

    Raises:
        RankfoldError: no plugin knows it.
    """
    kind = known_kind(path)
    if kind is not None:
        return kind
    kinds = ", ".join(f"{k.kind} ({', '.join(k.suffixes)})" for k in _kinds())
    raise RankfoldError(
        f"model {str(path)!r} is no file of a whole model; known are {kinds or 'none'}; give the "
        "model itself, or compress a checkpoint with rankfold.compress_checkpoint()"
    )


def known_kind(path: Path) -> ModelFile | None:
    """Return the kind of a file by its suffix; None for one that no plugin knows."""
    suffix = path.suffix.lower()
    return next((kind for kind in _kinds() if suffix in kind.suffixes), None)


def read_model(path: Path, kind: ModelFile) -> Any:
    """Read the model of a file.

    Raises:
        RankfoldError: what reads it is not installed, or the file is missing or damaged.
    """
    return _call(kind, kind.read, path, path)


def plan_in(path: Path) -> Plan:
    """Return the plan in a file of a compressed model.

    Raises:
        RankfoldError: there is none, what reads it is not installed, or the file is damaged.
    """
    kind = file_kind(path)
    plan = _call(kind, kind.plan, path, path) if kind.plan else None
    if not isinstance(plan, Plan):
        raise RankfoldError(
            f"{str(path)!r} holds no plan; give a file or a folder that rankfold wrote"
        )
    return plan


def write_model(model: Any, plan: Plan, path: Path, source: Path | None = None) -> None:
    """Write a model and its plan into one file, which takes the place of an earlier one.

    Args:
        model: the compressed model.
        plan: of it.
        path: of the file, with the suffix of its kind.
        source: the file that the original was read from; None where it was none.

    Raises:
        RankfoldError: the file cannot be written, or is the source.
    """
    check_writable(path, source)
    kind = file_kind(path)
    _call(kind, kind.write, path, model, path, plan, source)


def check_writable(path: Path, source: Path | None = None) -> None:
    """Check that a file may be written.

    Args:
        path: of the file.
        source: the file that the original is read from; None where it is none.

    Raises:
        RankfoldError: it is the source, or a folder.
    """
    try:
        is_source = source is not None and path.exists() and path.samefile(source)
    except OSError as error:
        raise RankfoldError(f"{str(path)!r} cannot be written: {error}") from None
    if is_source:
        raise RankfoldError(f"{str(path)!r} is the model itself; name another file for the result")
    if known_kind(path) is not None and path.is_dir():
        raise RankfoldError(f"{str(path)!r} is a folder; name a file")


def writes(model: Any, path: Path) -> bool:
    """Return whether a path names a file of a kind that the adapter of a model has."""
    kind = known_kind(path)
    if kind is None:
        return False
    adapter = registry().adapter(model)
    target = f"{type(adapter).__module__}:{type(adapter).__qualname__}"
    specs = registry().adapters.values()
    return any(kind in spec.model_files and spec.target == target for spec in specs)


def _call(kind: ModelFile, target: str, path: Path, *arguments: Any) -> Any:
    try:
        function = resolve(target)
    except ImportError as error:
        raise RankfoldError(
            f"{str(path)!r} is {kind.kind}, and {error.name or error} is missing: {kind.install}"
        ) from error
    with contained(f"{str(path)!r}: {target!r}", RankfoldError):
        return function(*arguments)


def _kinds() -> Iterator[ModelFile]:
    for spec in registry().adapters.values():
        yield from spec.model_files
