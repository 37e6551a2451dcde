"""Checks of a stored state against the model that it is to be loaded into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.storage.wrapper_prefixes import matched

T = TypeVar("T")


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
