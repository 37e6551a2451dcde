"""Thousands of corrupted checkpoints: each is compressed or refused, and nothing else happens."""

import json
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from tests.core.checkpoints.files import contents, normal, raw, sharded, sound
from tests.core.checkpoints.fuzzing import harmless

TENSORS = {
    "a.weight": ("F32", (6, 8), normal(0, 6, 8)),
    "a.bias": ("F32", (6,), normal(1, 6)),
    "b.weight": ("BF16", (4, 3, 3, 3), normal(2, 54)),
    "c.kernel": ("F64", (5, 7), normal(3, 70)),
    "n": ("I64", (), bytes(8)),
    "e": ("U8", (0, 3), b""),
}
QUICK = settings(
    max_examples=60,
    deadline=2000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def content(tmp_path: Path) -> bytes:
    return sound(tmp_path / "sound", TENSORS, {"format": "pt"}).read_bytes()


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)


def corrupted(data: bytes, edits) -> bytes:
    """Replaces some bytes by others, as many or not."""
    for place, fresh, length in edits:
        start = int(place * (len(data) + 1))
        data = data[:start] + fresh + data[start + length :]
    return data


@QUICK
@given(edits=EDITS, end=st.none() | st.floats(0, 1), head=st.booleans())
def test_corrupted_bytes(tmp_path: Path, folder: Path, edits, end, head: bool) -> None:
    data = content(tmp_path)
    if head:  # most of what matters is there
        size = 8 + int.from_bytes(data[:8], "little")
        data = corrupted(data[:size], edits) + data[size:]
    else:
        data = corrupted(data, edits)
    if end is not None:
        data = data[: int(end * len(data))]
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    harmless(file, folder)


NUMBERS = st.one_of(
    *(st.integers(-2, 400), st.sampled_from([2**31, 2**62, 2**63, 2**64, -(2**63), 10**30])),
    *(st.floats(), st.booleans(), st.none()),
)
JUNK = st.recursive(
    NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.text(max_size=12) | st.sampled_from(
    [*TENSORS, "__metadata__", "a.0.weight", "a.0", "x.weight", "x.bias", ".weight", "weight"]
)
TYPES = st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "I8", "F4", "BOOL", "C64", "x"])
SHAPES = st.lists(st.integers(0, 12) | NUMBERS, max_size=6)
TENSOR = st.fixed_dictionaries(
    {"dtype": TYPES | JUNK, "shape": SHAPES | JUNK, "data_offsets": SHAPES | JUNK}
)


@QUICK
@given(data=st.data())
def test_mutated_headers(tmp_path: Path, folder: Path, data: st.DataObject) -> None:
    whole = content(tmp_path)
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)) if header else NAMES)
        match data.draw(st.sampled_from(["rename", "remove", "replace", "field", "add"])):
            case "rename":
                header[data.draw(NAMES)] = header.pop(name, {})
            case "remove":
                header.pop(name, None)
            case "replace":
                header[name] = data.draw(TENSOR | JUNK)
            case "field" if isinstance(header.get(name), dict):
                field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
                header[name][field] = data.draw(TYPES | SHAPES | JUNK)
            case _:
                header[data.draw(NAMES)] = data.draw(TENSOR)
    file = raw(tmp_path / "x.safetensors", header, whole[8 + size :])
    harmless(file, folder)


@st.composite
def sound_files(draw: st.DrawFn) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors of all types and shapes that fit their file, with any bits."""
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U8": 1}
    found = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(sizes)))
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=5)))
        count = sizes[dtype]
        for extent in shape:
            count *= extent
        seed = draw(st.integers(0, 2**32))
        wild = draw(st.booleans())
        values = (seed.to_bytes(8, "little") * (count // 8 + 1))[:count]
        found[name] = (dtype, shape, values if wild else bytes(count))
    return found


@QUICK
@given(tensors=sound_files(), exclude=st.sampled_from(["*", ""]))
def test_files_that_are_sound_but_odd(tmp_path: Path, folder: Path, tensors, exclude) -> None:
    file = sound(tmp_path / "x.safetensors", tensors)
    harmless(file, folder, **({"exclude": exclude} if exclude else {}))


@QUICK
@given(edits=EDITS, which=st.sampled_from(["model.safetensors.index.json", "config.json"]))
def test_corrupted_documents(tmp_path: Path, folder: Path, edits, which: str) -> None:
    source = tmp_path / "source"
    if not source.exists():
        sharded(source, files=2, layers=1, shape=(5, 6))
        (source / "config.json").write_text('{"model_type": "gpt2", "n": [1, 2.5, null]}')
        (tmp_path / "kept").mkdir()
        for file in source.glob("*.json"):
            (tmp_path / "kept" / file.name).write_bytes(file.read_bytes())
    for file in (tmp_path / "kept").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / which).write_bytes(corrupted((source / which).read_bytes(), edits))
    before = contents(source)
    harmless(source, folder)
    assert contents(source) == before


@pytest.mark.fuzz
def test_atheris_finds_nothing_within_a_minute(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    sound(corpus / "sound", TENSORS, {"format": "pt"})
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.core.checkpoints.atheris_harness",
            "-max_total_time=60",
            str(corpus),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
