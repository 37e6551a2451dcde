"""The header of a safetensors file, checked before anything is read or allocated by it.

A file is 8 bytes with the length of the header, the header, a JSON object from names to type, shape
and place, and the data, which the tensors fill without gaps or overlaps.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array

LENGTH = 8
"""The bytes that tell the length of the header."""
# As in safetensors itself, which refuses longer headers.
_MOST = 100_000_000
_AXES = 64
"""Of an array of NumPy, at most."""
_NUMBERS = 2**59
"""Of an array, along its axes that are not empty: NumPy counts its bytes in 63 bits."""
# Parsing makes Python objects of many times the text's size. A header of mere brackets would take
# gigabytes; one of tensors has a name, a type, a shape and offsets for each. Below this size even
# the worst is small.
_LARGE = 16 * 2**20
_BYTES = 16
"""That a large JSON document has for each of its lists and objects, at least."""
# Half of a surrogate pair is valid in JSON as an escape, but cannot be encoded when it is written.
# Control characters in names could move the cursor of the terminal that shows them.
_HALF = re.compile("[\ud800-\udfff]")
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_METADATA = "__metadata__"
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""The types that weights have, with their names in NumPy and ml_dtypes."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: of the tensor.
        dtype: as safetensors writes it: "F32", "BF16", ...
        shape: of the tensor.
        begin: of its data, in bytes from the start of the file.
        size: of its data, in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True)
class Header:
    """Contents of a header: the tensors of a file and what goes along with them.

    Attributes:
        entries: its tensors by name.
        metadata: that go along with them.
        notes: what to know of how they were found, for a plan.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()


def holds_header(start: bytes, total: int) -> bool:
    """Return whether a file begins as a safetensors file does.

    Args:
        start: its first nine bytes.
        total: its bytes in all.
    """
    length = int.from_bytes(start[:LENGTH], "little")
    return length <= min(_MOST, total - LENGTH) and start[LENGTH:] == b"{"


def read_header(file: Path) -> Header:
    """Read the header of a file.

    Raises:
        RankfoldError: it is not a plain file, or not a safetensors file that is whole and sound.
    """
    check_plain(file)
    try:
        # The size is known before anything is read, so that a length field can promise no more
        # memory than the file itself would take.
        total = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH), "little")
            if total < LENGTH or length > min(_MOST, total - LENGTH):
                raise _damaged(
                    file, f"a header of {length} bytes in a file of {total}; it is cut short"
                )
            if stream.read(1) != b"{":
                raise _damaged(file, "a header that is not a JSON object")
            # "{" is tested before the rest is read: the format requires it, and no byte sequence of
            # another kind of file is then parsed as megabytes of JSON.
            text = b"{" + stream.read(length - 1)
    except OSError as error:
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    try:
        content = parse_json(text)
        return _checked(content, LENGTH + length, total)
    except ValueError as error:
        raise _damaged(file, str(error)) from None


def parse_json(text: bytes) -> Any:
    """Parse a JSON document without repeated keys, NaN, half characters or too much depth.

    Raises:
        ValueError: it is none.
    """
    if len(text) > _LARGE and _BYTES * (text.count(b"[") + text.count(b"{")) > len(text):
        raise ValueError("JSON of more lists and objects than data")
    try:
        # Python's parser would take the last of repeated keys and accept NaN, both against the
        # format; two readers could then see two contents in one file.
        return json.loads(
            text.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_int
        )
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Any) -> bytes:
    """Return the start of a file, to a multiple of 8 bytes: the header and before it its length.

    Args:
        tensors: type and shape by name, in the order of their data.
        metadata: of the file.
    """
    content: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + nbytes(dtype, shape)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    # Spaces behind the object, as the format allows; the data then begin on a boundary of 8 bytes.
    text += b" " * (-len(text) % LENGTH)
    return len(text).to_bytes(LENGTH, "little") + text


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Number of bytes that a tensor takes."""
    return math.prod(shape) * _BITS[dtype] // 8


def alignment(dtype: str) -> int:
    """Number of bits of one element."""
    return _BITS[dtype]


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a type in `FLOATS`."""
    # bfloat16 and float8 are dtypes of ml_dtypes; NumPy itself has the others.
    import ml_dtypes

    name = FLOATS[dtype]
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


def viewed(data: Array, entry: Entry) -> Array:
    """View bytes as the tensor they are, of a type in `FLOATS`."""
    return data.view(numpy_dtype(entry.dtype)).reshape(entry.shape)


def check_name(name: str) -> None:
    """Check that the name of a tensor can be written and shown.

    Raises:
        RankfoldError: it cannot.
    """
    if not name or name == _METADATA or _UNFIT.search(name):
        raise RankfoldError(f"{name!r} is no name for a tensor")


def check_plain(file: Path) -> None:
    """Check that a file is there and is neither a link nor a device.

    Raises:
        RankfoldError: it is not.
    """
    try:
        link, plain = file.is_symlink(), file.is_file()
    except (OSError, ValueError) as error:
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None
    if link:
        raise RankfoldError(
            f"{str(file)!r} is a link, which can lead anywhere; copy the files themselves (cp -rL)"
        )
    if not plain:
        raise RankfoldError(f"{str(file)!r} is missing or not a plain file")


def _checked(content: Any, start: int, total: int) -> Header:
    if not isinstance(content, dict):
        raise ValueError("a header that is not a JSON object")
    metadata = content.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata that are not texts")
    entries = {}
    # Every tensor is within the file and they tile it: sorted by their place, each begins where the
    # one before ends, and the last ends with the file. So no bytes are hidden and none are shared.
    # Empty tensors sort before the one that begins at the same place.
    for name, value in content.items():
        entry = _entry(name, value, start)
        if entry.begin + entry.size > total:
            raise ValueError(f"tensor {name!r} reaches beyond the end of the file")
        entries[name] = entry
    end = start
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.size)):
        if entry.begin != end:
            raise ValueError(f"tensor {entry.name!r} overlaps another one or leaves a gap")
        end = entry.begin + entry.size
    if end != total:
        raise ValueError(f"{total - end} bytes at the end that belong to no tensor")
    return Header(entries, metadata)


def _entry(name: str, value: Any, start: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} without just dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"tensor {name!r} of type {dtype!r}, which is not known")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} with a shape or offsets that are no counts")
    # Empty axes are left out of the product: the others must still be in range, since NumPy checks
    # the strides of arrays without elements, too.
    if len(shape) > _AXES or math.prod(size for size in shape if size) > _NUMBERS:
        raise ValueError(f"tensor {name!r} of a shape that no array can have")
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    # Types of 4 and 6 bits are packed, and a tensor of them must end on a whole byte.
    if bits % 8 or end - begin != bits // 8:
        raise ValueError(f"tensor {name!r}: {dtype} {shape} does not take {end - begin} bytes")
    return Entry(name, dtype, tuple(shape), start + begin, end - begin)


def _sizes(values: Any) -> bool:
    # `type` and not `isinstance`: True is an int, but no size. The bound is that of 64-bit offsets.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    # The hook gets the pairs in full, before a dictionary has dropped repeated keys.
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice")
    for key, value in pairs:
        if _HALF.search(key) or (isinstance(value, str) and _HALF.search(value)):
            raise ValueError(f"half of a surrogate pair in {key!r}")
    return content


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} in JSON")


def _int(text: str) -> int:
    # 2⁶⁴ has 20 digits. Far beyond that Python refuses as well, in words on a setting of its own.
    if len(text) > 20:
        raise ValueError("a number of more than 20 digits")
    return int(text)


def _damaged(file: Path, why: str) -> RankfoldError:
    return RankfoldError(f"{str(file)!r} is damaged or not a safetensors file: {why}")
