"""The header of a file is checked before anything is read or allocated by it."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.core.checkpoints.files import entry, normal, raw

from rankfold.errors import RankfoldError
from rankfold.storage.safetensors_header import (
    FLOATS,
    Entry,
    alignment,
    check_name,
    check_plain,
    header_bytes,
    holds_header,
    nbytes,
    numpy_dtype,
    parse_json,
    read_header,
    viewed,
)

FINE = entry("F32", (4, 6))
DATA = normal(0, 4, 6)


def refused(source: Path, match: str) -> str:
    """Return the error of a header; little memory may be taken for it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RankfoldError, match=match) as error:
        read_header(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000
    return str(error.value)


HEADERS = {
    "no object": b"[1, 2]",
    "nothing": b"",
    "blanks": b"        ",
    "no JSON": b'{"a": ',
    "two documents": b"{} {}",
    "invalid UTF-8": b'{"a\xff": 1}',
    "an overlong character": b'{"\xc0\xaf": {}}',
    "an encoded surrogate": b'{"\xed\xa0\x80": {}}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": {"dtype": "F32", "shape": [-Infinity], "data_offsets": [0, 96]}}',
    "a long number": b'{"a": ' + b"9" * 5000 + b"}",
    "a very long number": b'{"a": ' + b"9" * 5_000_000 + b"}",
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    "deep metadata": b'{"__metadata__": ' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_001,
    "open lists": b'{"a": ' + b"[" * 100_000,
    "many empty lists": b'{"a": [' + b"[]," * 6_000_000 + b"1]}",
    "a repeated name": b'{"a": %s, "a": %s}' % ((json.dumps(FINE).encode(),) * 2),
    "a repeated key": b'{"a": {"dtype": "F64", "dtype": "F32", "shape": [4, 6], '
    b'"data_offsets": [0, 96]}}',
    "half a character in a name": b'{"\\ud800.weight": %s}' % json.dumps(FINE).encode(),
    "half a character in metadata": b'{"__metadata__": {"a": "\\udfff"}, "a.weight": %s}'
    % json.dumps(FINE).encode(),
    "half a character in a key of metadata": b'{"__metadata__": {"\\ud800": ""}, "a.weight": %s}'
    % json.dumps(FINE).encode(),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, header: bytes) -> None:
    message = refused(raw(tmp_path / "x.safetensors", header, DATA), "is damaged or not")
    assert len(message) < 2000


LENGTHS = [0, 1, 2**8, 10_000, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_wrong_length_of_the_header_is_refused(tmp_path: Path, length: int) -> None:
    refused(raw(tmp_path / "x.safetensors", {"a.weight": FINE}, DATA, length), "damaged")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x02{}\0\0\0\0\0\0"[:size])
    refused(tmp_path / "x.safetensors", "damaged")


def test_a_long_header_of_a_file_with_holes_is_refused_at_its_start(tmp_path: Path) -> None:
    file = raw(tmp_path / "x.safetensors", b"", length=100_000_000)
    os.truncate(file, 200_000_000)
    refused(file, "not a JSON object")


ENTRIES = {
    "offsets beyond the end": {"a": entry("F32", (4, 6)), "b": entry("F32", (4,), 96)},
    "huge offsets": {"a": {"dtype": "U8", "shape": [1], "data_offsets": [2**62, 2**62 + 1]}},
    "offsets of 64 bits": {"a": {"dtype": "U8", "shape": [1], "data_offsets": [2**64, 2**64]}},
    "negative offsets": {"a": {"dtype": "U8", "shape": [96], "data_offsets": [-96, 0]}},
    "backward offsets": {"a": {"dtype": "U8", "shape": [96], "data_offsets": [96, 0]}},
    "three offsets": {"a": {"dtype": "U8", "shape": [96], "data_offsets": [0, 96, 96]}},
    "offsets of text": {"a": {"dtype": "U8", "shape": [96], "data_offsets": ["0", "96"]}},
    "fractions": {"a": {"dtype": "U8", "shape": [96.0], "data_offsets": [0, 96]}},
    "truth as a number": {"a": {"dtype": "U8", "shape": [True, 96], "data_offsets": [0, 96]}},
    "a gap": {"a": entry("F32", (4,)), "b": entry("F32", (16,), 32)},
    "a gap at the start": {"a": entry("F32", (23,), 4)},
    "an overlap": {"a": entry("F32", (4, 6)), "b": entry("F32", (4,), 80)},
    "one place for two": {"a": entry("F32", (4, 6)), "b": entry("F32", (4, 6))},
    "bytes of no tensor": {"a": entry("F32", (4, 5))},
    "only bytes of no tensor": {},
    "too little for the shape": {"a": {**FINE, "shape": [4, 7]}},
    "too much for the type": {"a": {**FINE, "dtype": "F16"}},
    "a negative size": {"a": {**FINE, "shape": [-4, -6]}},
    "a huge size": {"a": {**FINE, "shape": [2**63]}},
    "a product that wraps": {"a": {**FINE, "shape": [2**32, 2**32, 24]}},
    "an unknown type": {"a": {**FINE, "dtype": "F33"}},
    "a type that is no text": {"a": {**FINE, "dtype": ["F32"]}},
    "no type": {"a": {"shape": [4, 6], "data_offsets": [0, 96]}},
    "something more": {"a": {**FINE, "more": 1}},
    "no tensor": {"a": None},
    "a number as a tensor": {"a": 1},
    "metadata that are a list": {"__metadata__": [], "a": FINE},
    "metadata of numbers": {"__metadata__": {"a": 1}, "a": FINE},
    "a shape with a zero beyond all arrays": {
        "a": FINE,
        "b.weight": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [96, 96]},
    },
    "axes without end": {
        "a": FINE,
        "b": {"dtype": "F32", "shape": [2**62] * 200_000 + [0], "data_offsets": [96, 96]},
    },
}


@pytest.mark.parametrize("header", ENTRIES.values(), ids=ENTRIES)
def test_tensors_that_do_not_fit_their_file_are_refused(
    tmp_path: Path, header: dict[str, object]
) -> None:
    message = refused(raw(tmp_path / "x.safetensors", header, DATA), "is damaged or not")
    assert len(message) < 2000


def test_a_header_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {"b": ("F32", (4, 6)), "a": ("BF16", (3,)), "é": ("I64", (0, 5))}
    start = header_bytes(tensors, {"format": "pt"})
    assert len(start) % 8 == 0
    data = bytes(range(sum(nbytes(*tensor) for tensor in tensors.values())))
    (tmp_path / "a").write_bytes(start + data)
    header = read_header(tmp_path / "a")
    assert header.metadata == {"format": "pt"}
    assert {n: (e.dtype, e.shape) for n, e in header.entries.items()} == tensors
    assert header.entries["b"].begin == len(start)
    stored = load_file(tmp_path / "a")
    assert stored["b"].tobytes() == data[:96]


def test_a_file_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    file = raw(tmp_path / "a", {"a": FINE}, DATA)
    size = file.stat().st_size
    start = file.read_bytes()[:9]
    assert holds_header(start, size)
    assert not holds_header(start, 20)
    assert not holds_header(start[:8] + b"[", size)
    assert not holds_header(b"PK\x03\x04" + b"\0" * 5, size)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bytes_are_viewed_as_numbers_of_their_type(dtype: str) -> None:
    numbers = np.array([[0.5, -1.0, 2.0]]).astype(numpy_dtype(dtype))
    data = np.frombuffer(numbers.tobytes(), np.uint8)
    tensor = Entry("a", dtype, (3, 1), 0, len(data))
    assert nbytes(dtype, (3, 1)) == len(data)
    assert alignment(dtype) == 8 * numbers.dtype.itemsize
    assert viewed(data, tensor).astype(np.float64).tolist() == [[0.5], [-1.0], [2.0]]


def test_numbers_of_a_few_bits_are_packed() -> None:
    assert nbytes("F4", (3, 2)) == 3
    assert nbytes("F6_E2M3", (4,)) == 3


@pytest.mark.parametrize("text", [b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 10**5, b"1" * 30])
def test_json_that_two_readers_could_see_differently_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|twice|digits"):
        parse_json(text)


def test_names_that_cannot_be_shown_are_refused() -> None:
    check_name("layers.0.weight é")
    for name in ("", "__metadata__", "a\x1b[2J", "a\ud800"):
        with pytest.raises(RankfoldError, match="is no name for a tensor"):
            check_name(name)


def test_a_link_and_a_pipe_are_no_plain_files(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    check_plain(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("link", "is a link"), ("pipe", "not a plain"), ("nothing", "missing")):
        with pytest.raises(RankfoldError, match=message):
            check_plain(tmp_path / name)
