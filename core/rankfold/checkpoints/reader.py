"""A checkpoint: one file or several with an index, whose tensors are read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rankfold.adapters.loading import Conversion
from rankfold.checkpoints.converted import ConvertedTensors
from rankfold.console import natural_order, some
from rankfold.errors import RankfoldError
from rankfold.faults import contained
from rankfold.linalg import Array
from rankfold.progress import progress
from rankfold.storage.file_formats import (
    SAFETENSORS,
    folder_reader_of,
    readable_within,
    reader_of,
)
from rankfold.storage.files import sha256_of
from rankfold.storage.hub_cache import followed
from rankfold.storage.model_folders import (
    SETTINGS,
    conversions_of,
    kind_of_checkpoint,
    read_json,
    read_settings,
)
from rankfold.storage.safetensors_file import File, Safetensors
from rankfold.storage.safetensors_header import (
    FLOATS,
    Entry,
    check_name,
    check_plain,
    viewed,
)
from rankfold.storage.wrapper_prefixes import unwrapped

_INDEX = ".index.json"
_MOST_INDEX = 100_000_000
"""Bytes of an index, which is read as a whole before anything in it is known."""
_PIECE = 8 * 2**20
"""Bytes that are read at a time of a tensor that is copied as it is."""


class Checkpoint:
    """The tensors of a checkpoint by name.

    It can be pickled: another process opens the files itself, once.

    Args:
        path: a .safetensors file, a folder with one or with several and their index, that index,
            or a file or a folder of another kind that a framework's plugin reads.
        key: of the state that is meant, where a file holds several; "a/b" for one within another.
        as_loaded: with the tensors that the model's library makes of others when it loads them, in
            place of these.

    Raises:
        RankfoldError: files are missing, damaged, links or outside of the folder, or the index does
            not fit them.

    Attributes:
        path: as given.
        files: of tensors, by name, in order.
        owner: the file of each tensor, by name; names are without what wrappers of a model add.
        settings: what config.json beside the files says; empty without one.
        kind: of the folder, where a library opens it as a model.
        notes: what to know of how the tensors were found.
    """

    def __init__(
        self, path: str | PathLike[str], *, key: str | None = None, as_loaded: bool = False
    ) -> None:
        self.path = Path(path)
        self._key = key
        self._as_loaded = as_loaded
        try:
            self._open()
        except OSError as error:
            raise RankfoldError(f"{str(self.path)!r} cannot be read: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files and headers stay here. With the outline the other process can tell that it sees
        # the same files, and the stamps keep its cache from handing out an older checkpoint of that
        # path.
        return _reopened, (
            self.path,
            self.outline,
            self._stamps,
            self._key,
            bool(self._converted.notes),
        )

    def _open(self) -> None:
        reader = folder_reader_of(self.path, self._key)
        index = None if reader is not None else _index_of(self.path)
        mapping = None
        if reader is not None:
            self.folder = self.path
            files = sorted(f for f in self.path.rglob("*") if f.is_symlink() or not f.is_dir())
        elif index is None:
            files = [_single(self.path)]
            self.folder = files[0].parent
        else:
            mapping = _weight_map(index)
            files = [index.parent / name for name in sorted(set(mapping.values()))]
            self.folder = index.parent
        self._paths = [followed(path) for path in files]
        # Checked before the first of them is opened: opening a pipe would wait for its writer.
        for path in self._paths:
            check_plain(path)
        # Stamps before headers: a file that is exchanged between the two gets a stamp that no
        # longer fits and counts as changed, whereas the other order would miss it.
        self._stamps = _stamps((*self._paths, self._settings_file))
        if reader is not None:
            self.files: dict[str, File] = {self.path.name: _read_by(reader, self.path)}
        else:
            self.files = {
                file.name: _opened(path, file.suffix, key=self._key)
                for file, path in zip(files, self._paths, strict=True)
            }
        self._name(mapping, index)

    def _name(self, mapping: Mapping[str, str] | None, index: Path | None) -> None:
        """Find the tensors of the files, and their names without wrappers."""
        stored: dict[str, str] = {}
        for name, file in self.files.items():
            names = list(file.header.entries)
            if isinstance(file, Safetensors):  # which has them by the alphabet, 10 before 9
                names.sort(key=natural_order)
            for tensor in names:
                if tensor in stored:
                    raise RankfoldError(
                        f"{str(self.folder)!r}: tensor {tensor!r} is in {stored[tensor]!r} and "
                        f"in {name!r}"
                    )
                check_name(tensor)
                stored[tensor] = name
        # Equal both ways. An index left beside files of another model could otherwise lead to
        # tensors of the right names and the wrong contents.
        if mapping is not None and mapping != stored:
            wrong = sorted(mapping.items() ^ stored.items())[0]
            raise RankfoldError(
                f"{str(index)!r}: tensor {wrong[0]!r} is not where the index says; the index is of "
                "other files"
            )
        short, parts = unwrapped(stored)
        self._stored_as = {name: tensor for tensor, name in short.items()}
        # From here on tensors go by their names without wrappers, as the layers of the plain model
        # have them. Taking a part away can leave a name that is none, such as "".
        self.owner = {name: stored[tensor] for name, tensor in self._stored_as.items()}
        for name in self.owner:
            check_name(name)
        wrappers = (f"names without {some(parts)}, which wrappers of the model add",)
        notes = [note for file in self.files.values() for note in file.header.notes]
        self.notes = (*notes, *(wrappers if parts else ()))
        self.settings = read_settings(self.folder)
        self.kind = kind_of_checkpoint(self.settings)
        self._convert()

    def _convert(self) -> None:
        """Put the tensors that are made of others in the place of these."""
        self._file_of = self.owner
        stored = {name: self._stored(name) for name in self.owner}
        conversions: tuple[Conversion, ...] = ()
        if self._as_loaded and self.kind is not None:
            kinds = {name: (entry.dtype, entry.shape) for name, entry in stored.items()}
            conversions = conversions_of(self.kind, self.settings, kinds)
        self._converted = ConvertedTensors(conversions, stored)
        self.owner = self._converted.owners(self.owner)
        self.notes = (*self.notes, *self._converted.notes)

    @property
    def _settings_file(self) -> Path:
        return followed(self.folder / SETTINGS)

    def __contains__(self, name: str) -> bool:
        return name in self.owner

    def entry(self, name: str) -> Entry:
        """Return type, shape and place of a tensor."""
        return self._converted.entry(name) if name in self._converted else self._stored(name)

    def _stored(self, name: str) -> Entry:
        return self.files[self._file_of[name]].header.entries[self._stored_as[name]]

    def _values(self, name: str) -> Array:
        """Read a tensor in its own type."""
        if name in self._converted:
            return self._converted.array(name, self._read)
        return self._read(name)

    def _read(self, name: str) -> Array:
        """Read a tensor of the files in its own type."""
        entry = self._stored(name)
        return viewed(self.files[self._file_of[name]].data(entry), entry)

    def data(self, name: str) -> Array:
        """Read the bytes of a tensor: (size,) uint8."""
        if name in self._converted:
            return np.ascontiguousarray(self._values(name)).reshape(-1).view(np.uint8)
        return self.files[self._file_of[name]].data(self._stored(name))

    def pieces(self, name: str) -> Iterator[Array]:
        """Read the bytes of a tensor a few megabytes at a time, so that copying takes no memory."""
        if name in self._converted:
            yield self.data(name)
            return
        entry, file = self._stored(name), self.files[self._file_of[name]]
        for begin in range(0, entry.size, _PIECE):
            size = min(_PIECE, entry.size - begin)
            yield file.data(replace(entry, begin=entry.begin + begin, size=size))

    def array(self, name: str) -> Array:
        """Read a tensor of floating-point numbers.

        Types that NumPy computes in only slowly or not at all (half precision, bfloat16, float8)
        come as float32.
        """
        array = self._values(name)
        wide = array.dtype in (np.float32, np.float64)
        return array if wide else array.astype(np.float32)

    def is_float(self, name: str) -> bool:
        """Return whether a tensor holds floating-point numbers that can be decomposed."""
        return self.entry(name).dtype in FLOATS

    @cached_property
    def outline(self) -> str:
        """Hash of headers, sizes and times: the same for all processes that see these files."""
        # Workers compare this one, not the content, which each of them would have to read in full.
        # Inode and time of state are left out: they differ between the clients of a network file
        # system.
        digest = hashlib.sha256(repr((self.settings, self._converted)).encode(errors="replace"))
        # The stamps end with that of config.json, whose content is hashed already.
        digest.update(repr([stamp and stamp[:2] for stamp in self._stamps[:-1]]).encode())
        for file in self.files.values():
            tensors = [
                (e.name, e.dtype, e.shape, e.begin, e.size) for e in file.header.entries.values()
            ]
            digest.update(repr(tensors).encode())
        return digest.hexdigest()

    @cached_property
    def content(self) -> str:
        """Hash of all that the files hold, wherever they lie and whatever they are called.

        No time or number that a file system keeps would do: tools set them.

        Raises:
            RankfoldError: they cannot be read.
        """
        try:
            return self._content()
        except OSError as error:
            raise RankfoldError(f"{str(self.path)!r} cannot be read: {error}") from None

    def _content(self) -> str:
        digest = hashlib.sha256(repr((self.settings, self._converted)).encode(errors="replace"))
        with progress("hashing", len(self._paths)) as advance:
            for file in self._paths:
                advance(file.name)
                digest.update(sha256_of(file).encode())
        return digest.hexdigest()

    def is_unchanged(self) -> bool:
        """Return whether the files still hold what they held when they were opened.

        A file that has been neither written nor exchanged since then has its stamp yet; where that
        is another one, by a backup or a change of mode, the content counts.

        Raises:
            RankfoldError: they cannot be read just now.
        """
        try:
            if _stamps((*self._paths, self._settings_file)) == self._stamps:
                return True
            # `_content` reads the files now, `content` is the hash that was kept when the run
            # began.
            return self.settings == read_settings(self.folder) and (self.content == self._content())
        # Gone is changed. Any other failure, of a network perhaps, says nothing on the content, and
        # must not cost the work that is done.
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        except OSError as error:
            raise RankfoldError(f"{str(self.path)!r} cannot be read: {error}") from None


_Stamp: TypeAlias = tuple[int, int, int, int]


def _stamps(files: Iterable[Path]) -> tuple[_Stamp | None, ...]:
    """Return size, time of change, of change of state and inode of each file; None if it is gone.

    Whatever sets the time of change changes that of the state.
    """
    stamps: list[_Stamp | None] = []
    for file in files:
        try:
            stat = file.lstat()
        except (FileNotFoundError, NotADirectoryError):
            stamps.append(None)
        else:
            stamps.append((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return tuple(stamps)


# A worker gets the checkpoint anew with every layer. Without a cache it would parse the headers, of
# which a large model has megabytes, each time.
@lru_cache(maxsize=4)
def _reopened(
    path: Path,
    outline: str,
    stamps: tuple[_Stamp | None, ...],
    key: str | None,
    as_loaded: bool,
) -> Checkpoint:
    """Open a checkpoint in another process; the stamps, which may differ, tell files apart."""
    checkpoint = Checkpoint(path, key=key, as_loaded=as_loaded)
    if checkpoint.outline != outline:
        raise RankfoldError(
            f"{str(path)!r} is not the same for all workers, or has changed meanwhile"
        )
    return checkpoint


def _index_of(path: Path) -> Path | None:
    if path.name.endswith(_INDEX):
        check_plain(followed(path))
        return path
    if not path.is_dir():
        return None
    files = sorted(path.glob(f"*.safetensors{_INDEX}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise RankfoldError(f"{str(path)!r} has several indices; name one of {names}")
    return files[0] if files else None


def _single(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        within = readable_within(path)
        remedy = f"name a folder in it, as {some(within)}" if within else "name a file"
        raise RankfoldError(
            f"{str(path)!r} has {len(files)} .safetensors files and no index; {remedy}"
        )
    return files[0]


def _opened(file: Path, suffix: str, key: str | None) -> File:
    """Open a file; a blob of a cache has no suffix, and the link to it has one."""
    reader = reader_of(file, key) if suffix != SAFETENSORS or file.suffix == suffix else None
    if reader is not None:
        return _read_by(reader, file)
    if key is not None:
        raise RankfoldError(f"key: {str(file)!r} is a safetensors file, which holds one state")
    safetensors = Safetensors(file)
    # The header is lazy. Read here, a damaged file is told before any work has begun.
    _ = safetensors.header
    return safetensors


def _read_by(reader: Callable[[Path], File], path: Path) -> File:
    with contained(f"the reader of {str(path)!r}", RankfoldError):
        return reader(path)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = read_json(followed(index), _MOST_INDEX)
    except ValueError as error:
        raise RankfoldError(f"{str(index)!r} is damaged: {error}") from None
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise RankfoldError(f"{str(index)!r} is no index: it has no weight_map")
    for tensor, name in mapping.items():
        # A plain name: neither a way out of the folder, nor one that only Windows would take for
        # such.
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name:
            raise RankfoldError(
                f"{str(index)!r}: tensor {tensor!r} is said to be in {name!r}, which is no file "
                "name of that folder"
            )
        if not name.endswith(".safetensors"):
            raise RankfoldError(f"{str(index)!r}: {name!r} is no .safetensors file")
    return mapping
