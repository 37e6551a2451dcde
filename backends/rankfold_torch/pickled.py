"""A state dict in a .pt, .pth or .bin file, read without running anything that it holds."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankfold.errors import RankfoldError
from rankfold.ops import Array
from rankfold.stored.headers import Entry, Header

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Pickled:
    """A file of tensors; see `rankfold.stored.source.File`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return state_dict(self._file)

    @cached_property
    def header(self) -> Header:
        """Of tensors one behind the other."""
        entries = {}
        for name, tensor in self._tensors.items():
            if tensor.layout is not torch.strided or tensor.dtype not in _NAMES:
                raise RankfoldError(
                    f"{str(self._file)!r}: {name!r} is {tensor.dtype} ({tensor.layout}), which a "
                    "safetensors file does not hold"
                )
            size = tensor.numel() * tensor.element_size()
            if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() < size:
                raise RankfoldError(f"{str(self._file)!r}: {name!r} is more than the file holds")
            entries[name] = Entry(name, _NAMES[tensor.dtype], tuple(tensor.shape), 0, size)
        return Header(entries, {"format": "pt"})

    def data(self, entry: Entry) -> Array:
        """The bytes of a tensor, or of a part of it."""
        if entry.size == 0:
            return np.empty(0, np.uint8)
        tensor = self._tensors[entry.name].detach().resolve_conj().resolve_neg().contiguous()
        made: Array = tensor.reshape(-1).view(torch.uint8).numpy()
        return made[entry.begin : entry.begin + entry.size]


def state_dict(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped where its kind allows that.

    Raises:
        RankfoldError: it cannot be read without running what it holds, or is no dict of tensors.
    """
    found: Any = None
    for mapped in (True, False):
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
            break
        except Exception as error:  # torch.load raises whatever the unpickler raises
            if not mapped:
                raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise RankfoldError(f"{str(file)!r} is not a state dict of tensors")
    return dict(found)
