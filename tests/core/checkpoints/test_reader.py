"""Checkpoints that are not what they should be: one clear error, and nothing is written."""

import math
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from tests.core.checkpoints.files import contents, entry, indexed, normal, raw, sharded, sound

import rankfold as rf

POLICY = rf.Ratio(0.4)
FINE = entry("F32", (4, 6))
DATA = normal(0, 4, 6)


def refused(source: Path, match: str | None = None, **settings: object) -> str:
    """The error; nothing may be left beside the source, and little memory be taken."""
    folder = source.parent
    before = sorted(folder.iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(rf.RankfoldError, match=match) as error:
        rf.compress_checkpoint(source, folder / "some" / "out", POLICY, **settings)
    assert type(error.value) is rf.RankfoldError
    assert sorted(folder.iterdir()) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000
    assert time.monotonic() - start < 10
    return str(error.value)


@pytest.mark.parametrize("name", ["", "a\0.weight", "a\n.weight", "a\x7f", "a\x1b[31m.weight"])
def test_a_name_that_nobody_gives_is_refused(tmp_path: Path, name: str) -> None:
    message = refused(raw(tmp_path / "x.safetensors", {name: FINE}, DATA), "is no name")
    assert message.isprintable()


def test_a_large_shape_with_a_zero_is_copied(tmp_path: Path) -> None:
    shapes = [(2**40, 0), (0, 2**20, 3, 3), (0, 0), (0,), (1,) * 64]
    tensors = {f"a{i}.weight": ("F32", s, b"") for i, s in enumerate(shapes[:-1])}
    tensors |= {f"b{i}.weight": ("BF16", s, b"") for i, s in enumerate(shapes[:-1])}
    tensors["many.weight"] = ("F32", shapes[-1], b"1234")
    source = sound(tmp_path / "x.safetensors", {**tensors, "c.weight": ("F32", (4, 6), DATA)})
    plan = rf.compress_checkpoint(source, tmp_path / "out", POLICY)
    assert [layer.path for layer in plan.replaced] == ["c"]
    assert "empty" in plan["a0"].reason


def test_things_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "pipe.safetensors", "not a plain file")
    refused(tmp_path / "folder.safetensors", "has 0 .safetensors files")
    refused(tmp_path / "missing.safetensors", "missing")
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(rf.RankfoldError, match="not a plain file"):
            rf.compress_checkpoint(device, tmp_path / "out", POLICY)


def test_a_path_with_a_null_is_refused(tmp_path: Path) -> None:
    for path in ("a\0.safetensors", "a\0.pt", "a\0.safetensors.index.json", "a" * 5000):
        with pytest.raises(rf.RankfoldError):
            rf.compress_checkpoint(tmp_path / path, tmp_path / "out", POLICY)
    source = sound(tmp_path / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    for path in ("out\0", "a" * 300):
        with pytest.raises(rf.RankfoldError):
            rf.compress_checkpoint(source, tmp_path / path, POLICY)
    assert list(tmp_path.iterdir()) == [source]


def test_links_are_refused(tmp_path: Path) -> None:
    real = sharded(tmp_path / "real")
    names = [file.name for file in real.iterdir()]
    (tmp_path / "x.safetensors").symlink_to(real / names[0])
    refused(tmp_path / "x.safetensors", "is a link")
    for place, name in enumerate(names):
        folder = tmp_path / str(place)
        folder.mkdir()
        for other in names:
            if other == name:
                (folder / other).symlink_to(real / other)
            else:
                (folder / other).write_bytes((real / other).read_bytes())
        refused(folder, "is a link")


WEIGHT_MAPS = {
    "no object": [],
    "nothing": {},
    "numbers": {"a.weight": 1},
    "an empty name": {"a.weight": ""},
    "the parent": {"a.weight": ".."},
    "a path upwards": {"a.weight": "../x.safetensors"},
    "an absolute path": {"a.weight": "/etc/x.safetensors"},
    "a folder": {"a.weight": "sub/x.safetensors"},
    "a backslash": {"a.weight": "..\\x.safetensors"},
    "a null": {"a.weight": "x\0.safetensors"},
    "a missing file": {"a.weight": "y.safetensors"},
    "another kind": {"a.weight": "x.bin"},
    "a missing tensor": {"a.weight": "x.safetensors", "b.weight": "x.safetensors"},
    "another tensor": {"b.weight": "x.safetensors"},
    "a tensor elsewhere": {"a.weight": "z.safetensors", "b.weight": "x.safetensors"},
    "a long name": {"a.weight": "x" * 5000 + ".safetensors"},
}


@pytest.mark.parametrize("weight_map", WEIGHT_MAPS.values(), ids=WEIGHT_MAPS)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, weight_map: object) -> None:
    folder = tmp_path / "source"
    indexed(folder, weight_map)
    sound(folder / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    sound(folder / "z.safetensors", {"b.weight": ("F32", (4, 6), DATA)})
    refused(folder)
    refused(folder / "model.safetensors.index.json")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    for name in ("x", "z"):
        tensors = {"a.weight": ("F32", (4, 6), DATA), name: ("F32", (4, 6), DATA)}
        sound(folder / f"{name}.safetensors", tensors)
    indexed(folder, {"a.weight": "x.safetensors", "x": "x.safetensors", "z": "z.safetensors"})
    refused(folder, "'a.weight' is in 'x.safetensors' and in 'z.safetensors'")


DOCUMENTS = {
    "nothing": b"",
    "a list": b"[]",
    "deep": b'{"weight_map": ' + b'{"a":' * 100_000,
    "long numbers": b'{"weight_map": ' + b"9" * 1_000_000 + b"}",
    "NaN": b'{"weight_map": NaN}',
    "binary": bytes(range(256)),
    "half a character": b'{"weight_map": {"a.weight": "\\ud800.safetensors"}}',
    "half a character in a tensor": b'{"weight_map": {"\\ud800": "x.safetensors"}}',
    "twice": b'{"weight_map": {}, "weight_map": {"a.weight": "x.safetensors"}}',
}


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = tmp_path / "source"
    sound(folder / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    (folder / "model.safetensors.index.json").write_bytes(text)
    refused(folder, "index")


def test_two_indices_are_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "source")
    text = (folder / "model.safetensors.index.json").read_text()
    (folder / "other.safetensors.index.json").write_text(text)
    refused(folder, "several indices")


@pytest.mark.parametrize("text", [*DOCUMENTS.values(), b'{"a": 1e999}', b"null"])
def test_settings_that_are_none_are_passed_over(tmp_path: Path, text: bytes) -> None:
    folder = tmp_path / "source"
    sound(folder / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    rf.compress_checkpoint(folder, tmp_path / "plain", POLICY)
    (folder / "config.json").write_bytes(text)
    rf.compress_checkpoint(folder, tmp_path / "out", POLICY)
    weights = "weights.safetensors"
    assert contents(tmp_path / "out")[weights] == contents(tmp_path / "plain")[weights]


def test_settings_that_are_no_file_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    sound(folder / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    plain = tmp_path / "plain"
    rf.compress_checkpoint(folder, plain, POLICY)
    settings = folder / "config.json"
    for place, make in enumerate(
        (lambda: os.mkfifo(settings), lambda: settings.symlink_to("/dev/zero"), settings.mkdir)
    ):
        make()
        out = tmp_path / f"out{place}"
        rf.compress_checkpoint(folder, out, POLICY)
        assert contents(out)["weights.safetensors"] == contents(plain)["weights.safetensors"]
        settings.rmdir() if settings.is_dir() else settings.unlink()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
def test_values_that_are_not_finite_are_refused_or_copied(
    tmp_path: Path, name: str, value: float
) -> None:
    weight = np.frombuffer(DATA, np.float32).copy()
    bias = np.arange(4, dtype=np.float32)
    (weight if name == "a.weight" else bias)[3] = value
    tensors = {
        "a.weight": ("F32", (4, 6), weight.tobytes()),
        "a.bias": ("F32", (4,), bias.tobytes()),
        "b.weight": ("F32", (4, 6), DATA),
        "norm.weight": ("F32", (4,), np.full(4, value, np.float32).tobytes()),
    }
    source = sound(tmp_path / "x.safetensors", tensors)
    assert name in refused(source, "exclude='a'")
    rf.compress_checkpoint(source, tmp_path / "out", POLICY, exclude="a")
    content = (tmp_path / "out" / "weights.safetensors").read_bytes()
    for kept in ("a.weight", "a.bias", "norm.weight"):
        assert tensors[kept][2] in content


def test_a_file_that_shrinks_meanwhile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankfold.checkpoints import compress as compression

    source = sound(tmp_path / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    write = compression.write

    def shrunk(*arguments):
        os.truncate(source, source.stat().st_size - 1)
        return write(*arguments)

    monkeypatch.setattr(compression, "write", shrunk)
    with pytest.raises(rf.RankfoldError, match="was changed"):
        rf.compress_checkpoint(source, tmp_path / "out", rf.Ratio(0.5))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_exchanged_meanwhile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankfold.checkpoints import compress as compression

    source = sound(tmp_path / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    write = compression.write

    def exchanged(*arguments):
        done = write(*arguments)
        sound(source, {"a.weight": ("F32", (4, 6), normal(1, 4, 6))})
        return done

    monkeypatch.setattr(compression, "write", exchanged)
    refused(source, "was changed")


def test_inputs_without_bound_are_refused(tmp_path: Path) -> None:
    source = sound(tmp_path / "x.safetensors", {"a.weight": ("F32", (4, 6), DATA)})
    for extent in ((2**70,), (2**40, 2**40), (0,), (-1,), ("9",), (1.5,), (True,), (), 5):
        refused(source, "inputs", inputs={"*": extent})
