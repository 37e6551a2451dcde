"""Checks of a stored state against the model that it is to be loaded into."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.storage.safetensors_header import read_header
from rankfold.storage.wrapper_prefixes import matched

T = TypeVar("T")


def read_whole(files: Iterable[Path], load: Callable[[Path], Mapping[str, T]]) -> dict[str, T]:
    """Read all tensors of safetensors files by name, each file checked before it is loaded.

    Args:
        files: of a state, or of the parts of one.
        load: reads a file, as `load_file` of safetensors does for each framework.

    Raises:
        RankfoldError: a file is missing or damaged, or has a type that the framework lacks.
    """
    stored: dict[str, T] = {}
    for file in files:
        read_header(file)
        try:
            stored.update(load(file))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    return stored


def renamed(
    file: Path,
    stored: Mapping[str, T],
    needed: Iterable[str],
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, T]:
    """Return the stored values by the model's names, without what wrappers add on either side.

    Args:
        file: where they were read, for the message.
        stored: values by the names of the file.
        needed: the names of the model, each of which must be there.
        aliases: further names of the same values, any of which will do.

    Raises:
        RankfoldError: a name is missing, or the model does not have it.
    """
    further = aliases or {}
    # A tied tensor may be stored under any of its names: under one by writers that store each
    # tensor once, under all by others. One of them is needed, and all are known.
    known = {name: (name, *further.get(name, ())) for name in needed}
    all_names: Collection[str] = {name for names in known.values() for name in names}
    names = matched(stored.keys(), all_names)
    values = {names[name]: value for name, value in stored.items()}
    missing = sorted(name for name, names in known.items() if not values.keys() & set(names))
    unknown = sorted(values.keys() - all_names)
    if missing or unknown:
        raise RankfoldError(
            f"{str(file)!r} does not fit the model: it lacks {some(missing)} and has "
            f"{some(unknown)} that the model has not"
        )
    return values


def check_alike(
    file: Path,
    name: str,
    stored: tuple[object, tuple[int, ...]],
    wanted: tuple[object, tuple[int, ...]],
) -> None:
    """Check that a stored value has the dtype and the shape of the model's.

    Args:
        file: where it was read.
        name: of the value.
        stored: its dtype and shape.
        wanted: those of the model.

    Raises:
        RankfoldError: it has another dtype or shape.
    """
    if stored != wanted:
        raise RankfoldError(
            f"{str(file)!r}: {name!r} is {stored[0]} {stored[1]}, the model's is "
            f"{wanted[0]} {wanted[1]}; make the model of that shape and dtype first"
        )
