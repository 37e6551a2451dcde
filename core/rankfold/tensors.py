"""Reading a safetensors file tensor by tensor, without a framework."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.ops import Array, Conv, Linear

_FLOAT8 = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_STORED_FLOATS = ("F64", "F32", "F16", "BF16", *_FLOAT8)
_KERNEL_AXES = (3, 4, 5)


class Tensors:
    """The tensors of an open safetensors file; each is read when asked for."""

    def __init__(self, stored: Any, file: Path) -> None:
        self._stored = stored
        self._file = file

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._stored.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._stored.get_slice(name).get_shape())

    def layer(self, name: str) -> Linear | Conv | None:
        """A matrix as a `Linear`, a kernel as a `Conv`; None for any other tensor.

        Types that NumPy computes in only slowly or not at all (half precision, bfloat16, float8)
        come as float32.
        """
        piece = self._stored.get_slice(name)
        axes = len(piece.get_shape())
        if piece.get_dtype() not in _STORED_FLOATS or axes not in (2, *_KERNEL_AXES):
            return None
        float8 = _FLOAT8.get(piece.get_dtype())
        weight: Array = self._float8(name, float8) if float8 else self._stored.get_tensor(name)
        if weight.dtype not in (np.float32, np.float64):
            weight = weight.astype(np.float32)
        return Linear(weight) if axes == 2 else Conv(weight)

    def _float8(self, name: str, dtype: str) -> Array:
        """A tensor of a type that safetensors does not give to NumPy."""
        import ml_dtypes

        start, header = self._header
        begin, end = header[name]["data_offsets"]
        values = np.fromfile(self._file, np.uint8, end - begin, offset=start + begin)
        kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype))
        return values.view(kind).reshape(header[name]["shape"])

    @cached_property
    def _header(self) -> tuple[int, dict[str, Any]]:
        """Where the data begin, and what the file says of each tensor."""
        with self._file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            return 8 + size, json.loads(stream.read(size))


@contextmanager
def open_tensors(file: Path) -> Iterator[Tensors]:
    """Opens a safetensors file.

    Raises:
        RankfoldError: the file is missing, truncated or not a safetensors file.
    """
    import ml_dtypes  # noqa: F401 - makes bfloat16 known to NumPy
    from safetensors import SafetensorError, safe_open

    try:
        stored = safe_open(file, framework="np")
    except (OSError, SafetensorError) as error:
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    with stored:
        yield Tensors(stored, file)
