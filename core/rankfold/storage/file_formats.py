"""The kind of a checkpoint: of a file by its first bytes, of a folder by a file that lies in it.

Names of checkpoints say little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rankfold.console import natural_order
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
    formats = [known for known in _formats() if not known.marker]
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
    return _reader(named, file, key)


def folder_reader_of(folder: Path, key: str | None = None) -> Callable[[Path], File] | None:
    """Find what a framework's plugin reads a folder with; None for a folder of no kind it knows.

    Args:
        folder: to read.
        key: of the state that is meant, of several in the checkpoint.

    Raises:
        RankfoldError: what reads it is not installed, or it takes no key.
    """
    for known in _formats():
        if known.marker and (folder / known.marker).is_file():
            return _reader(known, folder, key)
    return None


def readable_within(folder: Path) -> list[str]:
    """Return the folders that a plugin reads, as paths below a folder that is none itself."""
    markers = [known.marker for known in _formats() if known.marker]
    # One level for the step of a training, and one for an item of it.
    files = (f for marker in markers for at in ("*", "*/*") for f in folder.glob(f"{at}/{marker}"))
    return sorted({str(file.parent.relative_to(folder)) for file in files}, key=natural_order)


def _reader(known: FileFormat, path: Path, key: str | None) -> Callable[[Path], File]:
    """Import what reads a checkpoint of a kind.

    Raises:
        RankfoldError: it is not installed, or takes no key.
    """
    try:
        reader: Callable[..., File] = resolve(known.read)
    except ImportError as error:
        raise RankfoldError(
            f"{str(path)!r} is {known.kind}, and {error.name or error} is missing: {known.install}"
        ) from error
    if key is None:
        return reader
    if not known.keyed:
        raise RankfoldError(f"key: {str(path)!r} is {known.kind}, which holds one state")
    return partial(reader, key=key)


def _formats() -> Iterator[FileFormat]:
    for spec in registry().adapters.values():
        yield from spec.formats
