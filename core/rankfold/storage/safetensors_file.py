"""Tensors of one safetensors file, read one by one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.storage.safetensors_header import (
    Entry,
    Header,
    read_header,
)


class File(Protocol):
    """One file of tensors."""

    @property
    def header(self) -> Header:
        """Names, types, shapes and places of its tensors, and its metadata."""

    def data(self, entry: Entry) -> Array:
        """Return the bytes of a tensor, or of the part that an entry stands for: (size,) uint8."""


@dataclass(frozen=True)
class Safetensors:
    """A safetensors file."""

    file: Path

    @cached_property
    def header(self) -> Header:
        """Names, types, shapes and places of its tensors, and its metadata."""
        return read_header(self.file)

    def data(self, entry: Entry) -> Array:
        """Read the bytes of a tensor: of a map, those of a file cut short are a bus error."""
        data = np.empty(entry.size, np.uint8)
        # Unbuffered, straight into the array: one copy of the tensor in memory. A raw read may give
        # less than it was asked for, on Linux at 2 GiB, so it goes on until nothing comes any more.
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(entry.begin)
                rest = data.data
                while rest and (count := stream.readinto(rest)):
                    rest = rest[count:]
        except OSError as error:
            raise RankfoldError(f"{str(self.file)!r} cannot be read: {error}") from None
        if rest:
            raise RankfoldError(f"{str(self.file)!r} has been cut short meanwhile")
        return data
