"""A state dict in a .pt, .pth or .bin file, read without running anything that it holds."""

from __future__ import annotations

import re
import threading
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.linalg import Array
from rankfold.storage.safetensors_header import Entry, Header

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


_CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params")
"""Keys under which training programs store the state of the model, best known first."""
_DEPTH = 3  # keys deep: {"model": {"state_dict": {...}}} and a level to spare
_ARCHIVE = b"PK\x03\x04"
# The pickle has names and shapes alone, some hundred bytes a tensor: room for above 10^5 tensors.
_MOST_PICKLE = 256 * 2**20
# What torch.jit.save and torch.export.save write and torch.save does not.
_SCRIPTED = ("/constants.pkl", "/models/model.json")
_GLOBAL = re.compile(r"GLOBAL (\S{1,200})")
_REMEDY = (
    "load it with torch where you trust it and save its state dict alone: "
    "torch.save(model.state_dict(), file)"
)


class Pickled:
    """A file of torch.save() behind the interface of `rankfold.storage.safetensors_file.File`."""

    def __init__(self, file: Path, key: str | None = None) -> None:
        self._file = file
        self._key = key

    @cached_property
    def _state(self) -> State:
        return read_state(self._file, self._key)

    @cached_property
    def header(self) -> Header:
        """Header of the file: name, dtype, shape and size in bytes of every tensor."""
        entries = {}
        for name, tensor in self._state.tensors.items():
            if tensor.layout is not torch.strided or tensor.dtype not in _NAMES:
                raise RankfoldError(
                    f"{str(self._file)!r}: {name!r} is {tensor.dtype} ({tensor.layout}), which a "
                    "safetensors file does not hold"
                )
            # A crafted file can claim a shape of terabytes over a few bytes by strides of 0. Such a
            # tensor would be made dense when its bytes are read; sizes are checked against the
            # storage instead.
            size = tensor.numel() * tensor.element_size()
            if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() < size:
                raise RankfoldError(f"{str(self._file)!r}: {name!r} is more than the file holds")
            # Offsets are within each tensor: `data` slices its bytes, whatever the file is like.
            entries[name] = Entry(name, _NAMES[tensor.dtype], tuple(tensor.shape), 0, size)
        keys = self._state.keys
        note = f"tensors from {' in '.join(map(repr, reversed(keys)))} of the file"
        if self._state.others:
            others = some(list(map(repr, self._state.others)))
            note += f", which has others in {others}: key= (--key on the command line) chooses"
        return Header(entries, {"format": "pt"}, (note,) if keys else ())

    def data(self, entry: Entry) -> Array:
        """Return the bytes of a tensor, or of a part of it."""
        if entry.size == 0:
            return np.empty(0, np.uint8)
        tensor = self._state.tensors[entry.name].detach()
        # Conjugation and negation are flags on a view; the bytes beneath do not have them.
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
        data: Array = tensor.reshape(-1).view(torch.uint8).numpy()
        return data[entry.begin : entry.begin + entry.size]


@dataclass(frozen=True)
class State:
    """The state of a model in a file.

    Attributes:
        tensors: by name.
        keys: where in the file they are; the outermost first.
        others: keys of further states that were passed over.
    """

    tensors: dict[str, torch.Tensor]
    keys: tuple[str, ...]
    others: tuple[object, ...] = ()


def read_state(file: Path, key: str | None = None) -> State:
    """Return the tensors of a file, mapped where its kind allows that.

    They are the whole of the file, or what training programs put beside other things, under
    "state_dict", "model" and the like.

    Args:
        file: to read.
        key: of the state that is meant; "a/b" for one within another.

    Raises:
        RankfoldError: there is no such key, or it cannot be read without running what it holds,
            or holds no dict of dense tensors.
    """
    archived = _check_archive(file)
    try:
        return _state(file, _loaded(file, archived), key)
    except UnpicklingError as error:
        pickled = _GLOBAL.search(str(error))
        if pickled and archived:
            # Trainers put hyperparameters beside the state, objects of any class.
            with suppress(RankfoldError, UnpicklingError):
                return _state(file, _loaded(file, archived, stand_in=True), key)
        if pickled:  # a page of advice to run what the file holds, in torch's words
            why = f"it holds {pickled[1]}, a pickled object whose code is not run"
            raise RankfoldError(f"{str(file)!r} cannot be read: {why}; {_REMEDY}") from None
        raise RankfoldError(
            f"{str(file)!r} cannot be read: {error}; where it holds more than tensors, {_REMEDY}"
        ) from None


class _StandIn:
    """Takes the place of an object whose class is not looked up, and keeps nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


_loading = threading.Lock()
"""PyTorch keeps what may stand in a file for the whole process: one file at a time is read."""


def _stand_ins(file: Path) -> list[Any]:
    """Return pairs of what stands in for a function or class that torch does not know, and it."""
    return [(_StandIn, name) for name in get_unsafe_globals_in_checkpoint(file)]


def _loaded(file: Path, archived: bool, stand_in: bool = False) -> Any:
    """Return what a file holds, mapped where its kind allows that.

    Args:
        file: to read.
        archived: whether it is a zip archive.
        stand_in: whether to leave out objects of classes that torch does not know.

    Raises:
        UnpicklingError: for whatever torch raises.
    """
    # `weights_only` admits tensors and plain containers and runs no constructor of the file's. It
    # does not bound memory, so the archive is checked before. Mapping is tried first: a mapped file
    # takes memory only for the tensors that are read. Old formats cannot be mapped.
    error: Exception | None = None
    for mapped in (True, False) if archived else (False,):
        try:
            with _loading, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is outdated in a file is no news to a user
                with safe_globals(_stand_ins(file) if stand_in else []):
                    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        # torch.load raises whatever the unpickler raises. The second try, without mapping, is for
        # archives that torch cannot map; its error is the one that is told.
        except Exception as raised:
            let_through(raised)
            error = raised
    raise UnpicklingError(str(error)) from error


def _state(file: Path, loaded: Any, key: str | None) -> State:
    """Return the state of the model among what a file holds; see `read_state`."""
    keys: list[str] = []
    others: list[object] = []
    for part in () if key is None else _parts(file, loaded, key):
        keys.append(part)
        loaded = loaded[part]
    while len(keys) < _DEPTH and not _all_tensors(loaded):
        container = _container(file, loaded)
        if container is None:
            break
        keys.append(container)
        others += [name for name, value in loaded.items() if name != container and _leads(value)]
        loaded = loaded[container]
    return State(_checked(file, loaded), tuple(keys), tuple(others))


def _check_archive(file: Path) -> bool:
    """Return whether a file is a zip archive; check that its parts take no more memory than room.

    torch.save() compresses nothing, so one that is compressed is another's work, and a file of
    kilobytes that fills the memory.

    Raises:
        RankfoldError: the archive is damaged, or its parts are compressed or overlap.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(len(_ARCHIVE)) != _ARCHIVE:
                return False
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
        size = file.stat().st_size
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    if any(part.filename.endswith(_SCRIPTED) for part in parts):
        raise RankfoldError(
            f"{str(file)!r} is a program of TorchScript or torch.export, which is not run; "
            f"{_REMEDY}"
        )
    for part in parts:
        # The directory of the archive says both sizes, and may lie. Equal sizes of uncompressed
        # parts whose sum is within the size of the file leave no room for an archive bomb; parts
        # that overlap add up to more than the file.
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise RankfoldError(
                f"{str(file)!r}: {part.filename!r} is compressed, which torch.save() does not do"
            )
        if part.filename.endswith(".pkl") and part.file_size > _MOST_PICKLE:
            raise RankfoldError(f"{str(file)!r}: {part.filename!r} is larger than any state dict")
    total = sum(part.file_size for part in parts)
    if total > size:
        raise RankfoldError(f"{str(file)!r}: parts of {total} bytes in a file of {size}")
    return True


def _all_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, torch.Tensor) for v in value.values())


def _parts(file: Path, loaded: Any, key: str) -> tuple[str, ...]:
    """Return the keys that a key stands for: itself, or those of dicts within each other.

    Raises:
        RankfoldError: the file has no such state.
    """
    for parts in ((key,), tuple(key.split("/"))):
        value = loaded
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, dict):
            return parts
    keys = [name for name, value in loaded.items() if _leads(value)] if _is_dict(loaded) else []
    raise RankfoldError(
        f"key: {str(file)!r} has no dict {key!r}; it has {some(list(map(repr, keys)))}"
    )


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _container(file: Path, loaded: Any) -> str | None:
    """Return the key of the state of the model in a file with more in it; None without one."""
    if not isinstance(loaded, dict):
        return None
    inner = [key for key, value in loaded.items() if isinstance(key, str) and _leads(value)]
    known = [key for key in _CONTAINERS if key in inner]
    tensors = any(isinstance(value, torch.Tensor) for value in loaded.values())
    if known or not inner or tensors:  # beside tensors a dict of another name is a part of them
        return known[0] if known else None
    if len(inner) > 1:
        raise RankfoldError(
            f"{str(file)!r} holds several dicts of tensors, {some(list(map(repr, inner)))}; name "
            "the one that is meant with key= (--key on the command line)"
        )
    return inner[0]


def _leads(value: Any, depth: int = _DEPTH) -> bool:
    """True if a value is the state of a model, or a known container of one."""
    if not isinstance(value, dict) or not value or not depth:
        return False
    # One tensor is enough to call it a state: a state with something else in it is refused by
    # `_checked` with the name of the item, which helps more than "no state dict".
    if any(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        return all(isinstance(name, str) for name in value)
    return any(_leads(value.get(key), depth - 1) for key in _CONTAINERS)


def _checked(file: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if not isinstance(loaded, dict) or not loaded:
        raise RankfoldError(
            f"{str(file)!r} is no state dict of tensors: it is {_kind(loaded)}; {_REMEDY}"
        )
    if not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise RankfoldError(
            f"{str(file)!r} holds no tensors under {some(list(map(repr, loaded)))}; save the "
            "state dict of a model: torch.save(model.state_dict(), file)"
        )
    for name, tensor in loaded.items():
        if not isinstance(name, str):
            raise RankfoldError(f"{str(file)!r} is no state dict of tensors: it has a key {name!r}")
        # By exact type: subclasses (DTensor, quantized wrappers) keep their values elsewhere than
        # in the storage that would be read here.
        plain = type(tensor) in (torch.Tensor, nn.Parameter)
        if not plain or tensor.is_nested or tensor.is_quantized:
            raise RankfoldError(
                f"{str(file)!r}: {name!r} is {_kind(tensor)}, not a dense tensor; leave it out, or "
                "store it as one"
            )
    return dict(loaded)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, torch.Tensor) and value.is_quantized:
        return "a quantized tensor"
    return "an empty dict" if value == {} else f"of type {type(value).__name__}"
