"""Folders that a library opens as models by itself: what its plugin knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankfold.adapters.loading import Conversion
from rankfold.errors import RankfoldError
from rankfold.faults import contained
from rankfold.linalg import Array
from rankfold.ops import Op
from rankfold.plan.plan import Plan
from rankfold.plugins.hookspecs import ModelFolder
from rankfold.plugins.registry import imported, registry, resolve
from rankfold.storage.hub_cache import followed
from rankfold.storage.safetensors_header import check_plain, numpy_dtype, parse_json

SETTINGS = "config.json"
"""The name of the file with a model's configuration."""
_MOST_SETTINGS = 16 * 2**20
"""Bytes of such a file, which is read as a whole before anything in it is known."""


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Return the configuration beside a model's files; {} for none, as it only helps."""
    file = followed(folder / SETTINGS)
    try:
        if file.is_symlink() or not file.is_file():
            return {}
        content = read_json(file, _MOST_SETTINGS)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json(file: Path, most: int) -> Any:
    """Read a file of JSON.

    Args:
        file: to read, which is no link.
        most: bytes that it may have.

    Raises:
        RankfoldError: it is no plain file.
        ValueError: it is larger, or no JSON.
        OSError: it cannot be read.
    """
    check_plain(file)
    if file.stat().st_size > most:
        raise ValueError("it is larger than any such file")
    return parse_json(file.read_bytes())


def kind_of_model(model: Any) -> ModelFolder | None:
    """Return the kind of folder that a model is saved as; None for a model of no such library."""
    for kind in registry().model_folders.values():
        classes = map(imported, kind.model_types)
        if any(isinstance(cls, type) and isinstance(model, cls) for cls in classes):
            return kind
    return None


def kind_of_checkpoint(settings: Mapping[str, Any]) -> ModelFolder | None:
    """Return the kind of folder that a checkpoint is, by its config.json."""
    for kind in registry().model_folders.values():
        if all(settings.get(entry) for entry in kind.settings):
            return kind
    return None


def save_model(kind: ModelFolder, model: Any, folder: Path) -> None:
    """Write a model into an empty folder.

    Raises:
        RankfoldError: it cannot be written.
        OSError: the same.
    """
    try:
        _called(kind, kind.save, model, folder)
    except RankfoldError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def files_beside(
    kind: ModelFolder, folder: Path, settings: Mapping[str, Any], plan: Plan
) -> dict[str, bytes | Path]:
    """Return the files that go beside the weights of a compressed checkpoint, by name.

    Raises:
        RankfoldError: they cannot be read.
    """
    files = dict(_called(kind, kind.beside, folder, settings, plan))
    with contained(f"plugin {kind.name!r}", RankfoldError):
        for name, content in files.items():
            if Path(name).name != name or not isinstance(content, (bytes, Path)):
                raise TypeError(f"{name!r} is no file of the folder")
    return files


def conversions_of(
    kind: ModelFolder,
    settings: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
) -> tuple[Conversion, ...]:
    """Return the conversions of a checkpoint's tensors that are made when it is loaded.

    Raises:
        RankfoldError: the plugin fails.
    """
    conversions: tuple[Conversion, ...] = tuple(_called(kind, kind.conversions, settings, tensors))
    return conversions


def converted(conversion: Conversion, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """Carry a conversion out.

    Raises:
        RankfoldError: it fails, or gives other tensors than it said.
    """
    with contained("a conversion of tensors", RankfoldError):
        tensors = conversion.convert(arrays)
        for name, (dtype, shape) in conversion.targets.items():
            if tensors[name].shape != shape or tensors[name].dtype != numpy_dtype(dtype):
                raise TypeError(
                    f"{name!r} is {tensors[name].dtype} {tensors[name].shape}, not {dtype} {shape}"
                )
    return tensors


def refusals_of(
    kind: ModelFolder, settings: Mapping[str, Any], layers: Mapping[str, tuple[str, Op]]
) -> Mapping[str, str]:
    """Return the layers of a checkpoint that must be left alone in the model, with the reasons.

    Raises:
        RankfoldError: the plugin fails.
    """
    return dict(_called(kind, kind.refusals, settings, layers))


def names_in_model(
    kind: ModelFolder,
    model: Any,
    settings: Mapping[str, Any],
    layers: Sequence[str],
    tensors: Sequence[str],
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the paths of layers and the names of tensors in a model by those in its files.

    Args:
        kind: of the model.
        model: that was not compressed.
        settings: config.json beside the files.
        layers: that are replaced, by their paths in the files.
        tensors: of the files.

    Raises:
        RankfoldError: the files do not fit the model.
    """
    paths, names = _called(kind, kind.names, model, settings, layers, tensors)
    return dict(paths), dict(names)


def _called(kind: ModelFolder, target: str, *arguments: Any) -> Any:
    with contained(f"plugin {kind.name!r}: {target!r}", RankfoldError):
        return resolve(target)(*arguments)
