"""The kind of a file, told by its first bytes: names of checkpoints say little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rankfold.errors import RankfoldError
from rankfold.plugins.hookspecs import FileFormat
from rankfold.plugins.registry import registry, resolve
from rankfold.storage.safetensors_file import File
from rankfold.storage.safetensors_header import LENGTH, check_plain, holds_header

SAFETENSORS = ".safetensors"


def reader_of(file: Path, key: str | None = None) -> Callable[[Path], File] | None:
    """Find what a framework's plugin reads a file with; None for a safetensors file.

    A damaged file counts as what its name says.

    Args:
        file: to read.
        key: of the state that is meant, of several in the file.

    Raises:
        RankfoldError: the file cannot be read, is of another kind than its name says, of none that
            is known, or what reads it is not installed.
    """
    check_plain(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(LENGTH + 1)
    except OSError as error:
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    # A safetensors file has no signature. Its length field is judged by the size of the file, and a
    # "{" behind it is not how a zip archive or a pickle goes on.
    if holds_header(start, size):
        return None
    formats = list(_formats())
    signed = next((known for known in formats if start.startswith(known.signatures)), None)
    # The name promises that nothing in the file is run. Handing a pickle under that name to its
    # reader would break the promise, however careful the reader is.
    if file.suffix == SAFETENSORS:
        if signed is not None:
            raise RankfoldError(
                f"{str(file)!r} is by its content {signed.kind}, not what its name says; name it "
                f"{signed.suffixes[0]} if you mean to read it"
            )
        return None
    # The name before the content here: of a damaged file the beginning tells nothing, and the
    # reader of the kind that it is named as can say best what is wrong.
    named = next((known for known in formats if file.suffix in known.suffixes), signed)
    if named is None:
        kinds = "".join(f", nor {known.kind}" for known in formats)
        raise RankfoldError(
            f"{str(file)!r} is damaged or not a safetensors file{kinds}; store the state of the "
            "model as one of these"
        )
    try:
        reader: Callable[..., File] = resolve(named.read)
    except ImportError as error:
        raise RankfoldError(
            f"{str(file)!r} is {named.kind}, and {error.name or error} is missing: {named.install}"
        ) from error
    if key is None:
        return reader
    if not named.keyed:
        raise RankfoldError(f"key: {str(file)!r} is {named.kind}, which holds one state")
    return partial(reader, key=key)


def _formats() -> Iterator[FileFormat]:
    for spec in registry().adapters.values():
        yield from spec.formats
