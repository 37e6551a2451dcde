"""Arrays of a calibration pass: in memory up to a bound, all further ones in a temporary file.

A pass over the data adds to the moments of all layers in turn, so that all of them have to be kept
at once, though only those of one layer are worked with. What does not fit into the bound goes
through a file: written and read by plain calls, since the pages of a memory map would count as
memory of the process.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rankfold.errors import RankfoldError
from rankfold.linalg import Array, read_only

LIMIT = 64 * 2**20
"""Bytes of a store that stay in memory: the moments of a small model need no file, and those of a
large one take no more than this and one layer's."""


class ArrayStore:
    """Arrays that are kept in memory as long as they fit, and in a temporary file beyond.

    The file lies in the folder that `tempfile` chooses, which TMPDIR sets. It has no name from the
    start (on Windows it is deleted when it is closed), so that nothing is left of it however the
    process ends.

    Args:
        limit: bytes to keep in memory; None for `LIMIT`.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._left = LIMIT if limit is None else limit
        self._file: IO[bytes] | None = None
        self._end = 0
        # Hooks of a model on several devices run in a thread for each.
        self._lock = threading.Lock()

    @property
    def bytes_on_disk(self) -> int:
        """Number of bytes in the file."""
        return self._end

    def keep(self, array: Array) -> StoredArray:
        """Store an array, which must not be written to by others from here on."""
        array = np.ascontiguousarray(array)
        with self._lock:
            if array.nbytes <= self._left:
                self._left -= array.nbytes
                return StoredArray(self, array.shape, array.dtype, array, 0)
            offset = self._end
            self._write(array, offset)
            self._end += array.nbytes
        return StoredArray(self, array.shape, array.dtype, None, offset)

    def reserve(self, rows: int, columns: int, dtype: npt.DTypeLike) -> StoredRows:
        """Reserve room for rows that come one after the other and are taken together.

        Args:
            rows: at most, between two times that they are taken.
            columns: of each row.
            dtype: of the rows.
        """
        size = rows * columns * np.dtype(dtype).itemsize
        with self._lock:
            if size <= self._left:
                self._left -= size
                return StoredRows(self, np.empty((rows, columns), dtype), columns, dtype, 0)
            offset = self._end
            self._end += size
        return StoredRows(self, None, columns, dtype, offset)

    def _add(self, stored: StoredArray, term: Array) -> None:
        with self._lock:
            total = stored.resident
            if total is None:
                total = self._read(stored.shape, stored.dtype, stored.offset)
            total += term
            if stored.resident is None:
                self._write(total, stored.offset)

    def _load(self, stored: StoredArray) -> Array:
        if stored.resident is not None:
            return read_only(stored.resident)
        return self._get(stored.shape, stored.dtype, stored.offset)

    def _get(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> Array:
        with self._lock:
            return self._read(shape, dtype, offset)

    def _put(self, array: Array, offset: int) -> None:
        with self._lock:
            self._write(array, offset)

    def _write(self, array: Array, offset: int) -> None:
        try:
            if self._file is None:
                # Unbuffered: a buffer would be one more copy, and written when the file is closed.
                self._file = tempfile.TemporaryFile(prefix="rankfold-", buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.seek(offset)
            rest = array.reshape(-1).view(np.uint8).data
            # A raw write may take less than it was given, on Linux at 2 GiB.
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _failed(error) from None

    def _read(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> Array:
        assert self._file is not None
        array = np.empty(shape, dtype)
        rest = array.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(offset)
            while rest:
                count = self._file.readinto(rest)  # type: ignore[attr-defined]  # it is a raw file
                if not count:
                    raise OSError("it has been cut short")
                rest = rest[count:]
        except OSError as error:
            raise _failed(error) from None
        return array


class StoredArray:
    """One array of a store.

    Args:
        store: that it is in.
        shape: of the array.
        dtype: of the array.
        resident: the array, if it is in memory.
        offset: of its first byte in the file, if it is there.
    """

    def __init__(
        self,
        store: ArrayStore,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        resident: Array | None,
        offset: int,
    ) -> None:
        self._store = store
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.resident = resident
        self.offset = offset

    def add(self, term: Array) -> None:
        """Add an array of the same shape."""
        self._store._add(self, term)

    def load(self) -> Array:
        """Return the array: read anew where it is in the file, else a view that is read-only."""
        return self._store._load(self)


class StoredRows:
    """Rows that wait in a store; see `ArrayStore.reserve`.

    Args:
        store: that they are in.
        resident: where they are put in memory; None if that is in the file.
        columns: of each row.
        dtype: of the rows.
        offset: of the first row in the file.

    Attributes:
        waiting: number of rows that have not been taken.
    """

    def __init__(
        self,
        store: ArrayStore,
        resident: Array | None,
        columns: int,
        dtype: npt.DTypeLike,
        offset: int,
    ) -> None:
        self._store = store
        self._resident = resident
        self._columns = columns
        self._dtype = np.dtype(dtype)
        self._offset = offset
        self.waiting = 0

    def add(self, rows: Array) -> None:
        """Add rows (n, columns), for which there has to be room."""
        end = self.waiting + len(rows)
        if self._resident is not None:
            self._resident[self.waiting : end] = rows
        else:
            before = self.waiting * self._columns * self._dtype.itemsize
            self._store._put(np.ascontiguousarray(rows, self._dtype), self._offset + before)
        self.waiting = end

    def take(self) -> Array:
        """Return the rows that wait, which then do so no more; overwritten by further ones."""
        shape = (self.waiting, self._columns)
        self.waiting = 0
        if self._resident is not None:
            return self._resident[: shape[0]]
        return self._store._get(shape, self._dtype, self._offset)


class StoredSum:
    """Sum of arrays of one shape.

    Args:
        store: keeps it.
    """

    def __init__(self, store: ArrayStore) -> None:
        self._store = store
        self._total: StoredArray | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return self._total is None

    @property
    def ndim(self) -> int:
        """Number of axes of what was added."""
        assert self._total is not None
        return len(self._total.shape)

    def add(self, term: Array, dtype: npt.DTypeLike) -> None:
        """Add an array.

        Args:
            term: to add; it may be shared with others.
            dtype: of the sum, that of the first term counts.
        """
        if self._total is None:
            self._total = self._store.keep(np.array(term, dtype))
            return
        # A term wider than the sum is rounded first, as it is when it is the first one.
        narrow = term if np.can_cast(term.dtype, self._total.dtype) else term.astype(dtype)
        self._total.add(narrow)

    def over(self, count: Any) -> Array:
        """Return the sum over a number, or over numbers that broadcast; read anew each time."""
        assert self._total is not None
        total = self._total.load()
        if not total.flags.writeable:
            return np.asarray(total / count)
        total /= count  # what was read from the file is a copy already
        return total

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite; true where nothing was added."""
        return self._total is None or bool(np.isfinite(self._total.load()).all())


def _failed(error: OSError) -> RankfoldError:
    return RankfoldError(
        f"moments cannot be kept in the temporary folder {tempfile.gettempdir()!r}: "
        f"{error.strerror or error}; set TMPDIR to a folder with more space"
    )
