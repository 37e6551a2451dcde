"""Which kind of file a file is, by its first bytes: names of checkpoints say little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rankfold.errors import RankfoldError
from rankfold.plugins.registry import registry, resolve
from rankfold.storage.safetensors_header import LENGTH, check_plain, holds_header

if TYPE_CHECKING:
    from rankfold.storage.safetensors_file import File

SAFETENSORS = ".safetensors"
_TORCH = ".pt"
_SIGNATURES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""Of torch.save(): a zip archive, or in old files a bare pickle of protocol 2 or later."""


def kind_of(file: Path) -> str:
    """The usual suffix of files that begin as this one does; "" for any other.

    Raises:
        RankfoldError: it cannot be read, or is not a plain file.
    """
    check_plain(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(LENGTH + 1)
    except OSError as error:
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    if holds_header(start, size):
        return SAFETENSORS
    return _TORCH if start.startswith(_SIGNATURES) else ""


def reader_of(file: Path) -> Callable[[Path], File] | None:
    """What a framework's plugin reads a file with; None for a safetensors file, damaged ones too.

    Raises:
        RankfoldError: it is of another kind than its name says, or of none that is known.
    """
    kind = kind_of(file)
    if kind == SAFETENSORS:
        return None
    if file.suffix == SAFETENSORS:
        if kind:
            raise RankfoldError(
                f"{str(file)!r} is by its content a file of torch.save(), not what its name says; "
                "name it .pt if you mean to read it"
            )
        return None
    for suffix in (file.suffix, kind):
        for spec in registry().adapters.values():
            target = dict(spec.readers).get(suffix)
            if target is not None:
                reader: Callable[[Path], File] = resolve(target)
                return reader
    if kind:
        raise RankfoldError(
            f"{str(file)!r} is a file of torch.save(), which is read where PyTorch is installed: "
            "pip install 'rankfold[torch]'"
        )
    raise RankfoldError(
        f"{str(file)!r} is damaged or not a safetensors file, nor one of torch.save(); store the "
        "state of the model as one of these"
    )
