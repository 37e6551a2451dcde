"""A checkpoint: one file or several with an index, whose tensors are read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.faults import contained
from rankfold.ops import Array
from rankfold.registry import registry, resolve
from rankfold.stored.headers import (
    FLOATS,
    Entry,
    Header,
    check_name,
    check_plain,
    parse_json,
    read_header,
    viewed,
)

_INDEX = ".index.json"
_MOST_INDEX = 100_000_000
_MOST_SETTINGS = 16 * 2**20
_PIECE = 8 * 2**20


class File(Protocol):
    """One file of tensors."""

    @property
    def header(self) -> Header:
        """Its tensors and its metadata."""

    def data(self, entry: Entry) -> Array:
        """The bytes of a tensor, or of the part of it that an entry stands for: (size,) uint8."""


@dataclass(frozen=True)
class Safetensors:
    """A safetensors file."""

    file: Path

    @cached_property
    def header(self) -> Header:
        """Its tensors and its metadata."""
        return read_header(self.file)

    def data(self, entry: Entry) -> Array:
        """The bytes of a tensor, read: of a map, those of a file cut short are a bus error."""
        found = np.empty(entry.size, np.uint8)
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(entry.begin)
                rest = found.data
                while rest and (count := stream.readinto(rest)):
                    rest = rest[count:]
        except OSError as error:
            raise RankfoldError(f"{str(self.file)!r} cannot be read: {error}") from None
        if rest:
            raise RankfoldError(f"{str(self.file)!r} has been cut short meanwhile")
        return found


class Checkpoint:
    """The tensors of a checkpoint by name.

    It can be pickled: another process opens the files itself, once.

    Args:
        path: a .safetensors file, a folder with one or with several and their index, that index,
            or a file of another kind that a framework's plugin reads (.pt, .pth, .bin).

    Raises:
        RankfoldError: files are missing, damaged, links or outside of the folder, or the index does
            not fit them.

    Attributes:
        path: as given.
        files: of tensors, by name, in order.
        owner: the file of each tensor, by name.
        settings: what config.json beside the files says; empty without one.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._open()
        except OSError as error:
            raise RankfoldError(f"{str(self.path)!r} cannot be read: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self.fingerprint)

    def _open(self) -> None:
        index = _index_of(self.path)
        if index is None:
            files = [_single(self.path)]
            mapping = None
        else:
            mapping = _weight_map(index)
            files = [index.parent / name for name in sorted(set(mapping.values()))]
        self.folder = files[0].parent
        self.files: dict[str, File] = {file.name: _opened(file) for file in files}
        self.owner: dict[str, str] = {}
        for name, file in self.files.items():
            for tensor in file.header.entries:
                if tensor in self.owner:
                    raise RankfoldError(
                        f"{str(self.folder)!r}: tensor {tensor!r} is in {self.owner[tensor]!r} and "
                        f"in {name!r}"
                    )
                check_name(tensor)
                self.owner[tensor] = name
        if mapping is not None and mapping != self.owner:
            wrong = sorted(mapping.items() ^ self.owner.items())[0]
            raise RankfoldError(
                f"{str(index)!r}: tensor {wrong[0]!r} is not where the index says; the index is of "
                "other files"
            )
        self.settings = _settings(self.folder / "config.json")

    def __contains__(self, name: str) -> bool:
        return name in self.owner

    def entry(self, name: str) -> Entry:
        """Type and shape of a tensor."""
        return self.files[self.owner[name]].header.entries[name]

    def data(self, name: str) -> Array:
        """The bytes of a tensor."""
        return self.files[self.owner[name]].data(self.entry(name))

    def pieces(self, name: str) -> Iterator[Array]:
        """The bytes of a tensor, a few megabytes at a time."""
        entry, file = self.entry(name), self.files[self.owner[name]]
        for begin in range(0, entry.size, _PIECE):
            size = min(_PIECE, entry.size - begin)
            yield file.data(replace(entry, begin=entry.begin + begin, size=size))

    def array(self, name: str) -> Array:
        """A tensor of floating-point numbers.

        Types that NumPy computes in only slowly or not at all (half precision, bfloat16, float8)
        come as float32.
        """
        entry = self.entry(name)
        found = viewed(self.data(name), entry)
        wide = found.dtype in (np.float32, np.float64)
        return found if wide else found.astype(np.float32)

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers that can be decomposed."""
        return self.entry(name).dtype in FLOATS

    @cached_property
    def fingerprint(self) -> str:
        """Of names, headers, sizes and times of change: another one where a file was exchanged."""
        found = hashlib.sha256(repr(self.settings).encode(errors="replace"))
        for name, file in self.files.items():
            stat = (self.folder / name).stat()
            tensors = [
                (e.name, e.dtype, e.shape, e.begin, e.size) for e in file.header.entries.values()
            ]
            found.update(repr((name, stat.st_size, stat.st_mtime_ns, tensors)).encode())
        return found.hexdigest()


@lru_cache(maxsize=4)
def _reopened(path: Path, fingerprint: str) -> Checkpoint:
    found = Checkpoint(path)
    if found.fingerprint != fingerprint:
        raise RankfoldError(
            f"{str(path)!r} is not the same for all workers, or has changed meanwhile"
        )
    return found


def _index_of(path: Path) -> Path | None:
    if path.name.endswith(_INDEX):
        check_plain(path)
        return path
    if not path.is_dir():
        return None
    found = sorted(path.glob(f"*.safetensors{_INDEX}"))
    if len(found) > 1:
        raise RankfoldError(f"{str(path)!r} has several indices; name one of {_names(found)}")
    return found[0] if found else None


def _single(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise RankfoldError(
            f"{str(path)!r} has {len(found)} .safetensors files and no index; name a file"
        )
    return found[0]


def _opened(file: Path) -> File:
    if file.suffix != ".safetensors":
        for spec in registry().adapters.values():
            reader = dict(spec.readers).get(file.suffix)
            if reader is not None:
                check_plain(file)
                with contained(f"reader {reader!r} of {str(file)!r}", RankfoldError):
                    opened: File = resolve(reader)(file)
                    return opened
    found = Safetensors(file)
    _ = found.header
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = _json(index, _MOST_INDEX)
    except ValueError as error:
        raise RankfoldError(f"{str(index)!r} is damaged: {error}") from None
    mapping = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise RankfoldError(f"{str(index)!r} is no index: it has no weight_map")
    for tensor, name in mapping.items():
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name:
            raise RankfoldError(
                f"{str(index)!r}: tensor {tensor!r} is said to be in {name!r}, which is no file "
                "name of that folder"
            )
        if not name.endswith(".safetensors"):
            raise RankfoldError(f"{str(index)!r}: {name!r} is no .safetensors file")
    return mapping


def _settings(file: Path) -> Mapping[str, Any]:
    """A model's configuration, where one lies beside its files: it only helps to tell layers."""
    try:
        if file.is_symlink() or not file.is_file():
            return {}
        found = _json(file, _MOST_SETTINGS)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(file: Path, most: int) -> Any:
    check_plain(file)
    if file.stat().st_size > most:
        raise ValueError("it is larger than any such file")
    return parse_json(file.read_bytes())


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)
