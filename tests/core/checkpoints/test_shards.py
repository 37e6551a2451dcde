"""What is not compressed is copied bit for bit; what is keeps its type."""

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tests.core.checkpoints.files import SIZES, contents, sharded, sound

import rankfold as rf
from rankfold.checkpoints.reader import Checkpoint
from rankfold.cli.executors import opened
from rankfold.storage.safetensors_header import Header

FLOATS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
METADATA = {
    "format": "pt",
    "": "",
    "é": "日本 \U0001f600",
    "quotes": '"\\\n\t\0',
    "json": '[{"a":1}]',
}


def bits(seed: int, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    """Any bits: NaN, infinities, subnormal numbers and negative zeros among them."""
    rng = np.random.default_rng(seed)
    return dtype, shape, rng.bytes(int(np.prod(shape)) * SIZES[dtype])


def read(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = Checkpoint(folder)
    return {
        name: (found.entry(name).dtype, found.entry(name).shape, found.data(name).tobytes())
        for name in found.owner
    }


def header(folder: Path) -> Header:
    return Checkpoint(folder).files["weights.safetensors"].header


def layer(dtype: str, seed: int = 0) -> tuple[str, tuple[int, ...], bytes]:
    values = np.random.default_rng(seed).standard_normal((24, 40)).astype(FLOATS[dtype])
    return dtype, values.shape, values.tobytes()


def test_untouched_tensors_of_every_type_are_copied_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"fc.weight": layer("F32")}
    for place, dtype in enumerate(SIZES):
        for axes, shape in enumerate(((), (5,), (3, 5), (0,), (4, 0, 3), (2, 3, 4, 1, 1, 2))):
            tensors[f"{dtype}.{axes}"] = bits(10 * place + axes, dtype, shape)
    source = sound(tmp_path / "x.safetensors", tensors, METADATA)
    rf.compress_checkpoint(source, tmp_path / "out", rf.Ratio(0.4))
    found = read(tmp_path / "out")
    for name, tensor in tensors.items():
        if name != "fc.weight":
            assert found.pop(name) == tensor, name
    assert found.keys() == {"fc.0.weight", "fc.1.weight"}
    assert header(tmp_path / "out").metadata == METADATA


def test_numbers_of_less_than_a_byte_are_copied(tmp_path: Path) -> None:
    from tests.core.checkpoints.files import raw

    data = layer("F32")[2] + bytes(range(6 + 3))
    end = len(data)
    entries = {
        "fc.weight": {"dtype": "F32", "shape": [24, 40], "data_offsets": [0, end - 9]},
        "four": {"dtype": "F4", "shape": [3, 4], "data_offsets": [end - 9, end - 3]},
        "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [end - 3, end]},
    }
    source = raw(tmp_path / "x.safetensors", entries, data)
    rf.compress_checkpoint(source, tmp_path / "out", rf.Ratio(0.4))
    found = read(tmp_path / "out")
    assert found["four"] == ("F4", (3, 4), bytes(range(6)))
    assert found["six"] == ("F6_E2M3", (4,), bytes(range(6, 9)))


@pytest.mark.parametrize("bias", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_layer_comes_back_in_its_own_types(tmp_path: Path, dtype: str, bias: str) -> None:
    values = np.arange(24).astype(FLOATS[bias]).tobytes()
    tensors = {"fc.weight": layer(dtype), "fc.bias": (bias, (24,), values)}
    source = sound(tmp_path / "x.safetensors", tensors)
    plan = rf.compress_checkpoint(source, tmp_path / "out", rf.Ratio(0.4))
    found = read(tmp_path / "out")
    assert {found[name][0] for name in ("fc.0.weight", "fc.1.weight")} == {dtype}
    assert found["fc.1.bias"] == (bias, (24,), values)
    factors = [
        np.frombuffer(found[name][2], FLOATS[dtype]).astype(np.float64).reshape(found[name][1])
        for name in ("fc.1.weight", "fc.0.weight")
    ]
    dense = np.frombuffer(layer(dtype)[2], FLOATS[dtype]).astype(np.float64).reshape(24, 40)
    error = np.linalg.norm(dense - factors[0] @ factors[1]) / np.linalg.norm(dense)
    assert plan["fc"].error == pytest.approx(error, rel=1e-6)


def test_excluded_layers_and_refused_ones_are_copied(tmp_path: Path) -> None:
    tensors = {
        "fc.weight": layer("F32"),
        "out.weight": bits(1, "F32", (9, 9)),
        "out.bias": bits(2, "F16", (9,)),
        "embed.weight": layer("BF16"),
        "int.weight": bits(3, "I8", (24, 40)),
        "scaled.weight": layer("F8_E4M3"),
        "scaled.weight_scale": bits(4, "F32", ()),
        "zero.weight": ("F32", (6, 6), bytes(144)),
    }
    source = sound(tmp_path / "x.safetensors", tensors)
    plan = rf.compress_checkpoint(source, tmp_path / "out", rf.Ratio(0.4), exclude="out")
    assert [found.path for found in plan.replaced] == ["fc"]
    found = read(tmp_path / "out")
    for name in tensors.keys() - {"fc.weight"}:
        assert found[name] == tensors[name], name


def test_weight_and_bias_in_different_files_end_up_together(tmp_path: Path) -> None:
    from tests.core.checkpoints.files import indexed, normal

    folder = tmp_path / "source"
    one = {"fc.bias": ("F32", (24,), normal(1, 24)), "a": bits(1, "I64", (3,))}
    two = {"fc.weight": layer("F32"), "b": bits(2, "BOOL", (3,))}
    sound(folder / "1.safetensors", one, {"part": "one"})
    sound(folder / "2.safetensors", two, {"part": "two"})
    owner = dict.fromkeys(one, "1.safetensors") | dict.fromkeys(two, "2.safetensors")
    indexed(folder, owner)
    rf.compress_checkpoint(folder, tmp_path / "out", rf.Ratio(0.4))
    found = read(tmp_path / "out")
    assert found.keys() == {"a", "b", "fc.0.weight", "fc.1.weight", "fc.1.bias"}
    assert (found["a"], found["b"]) == (one["a"], two["b"])
    assert found["fc.1.bias"] == one["fc.bias"]
    files = Checkpoint(tmp_path / "out").files.values()
    assert [file.header.metadata for file in files] == [{"part": "one"}, {"part": "two"}]


def test_other_libraries_read_the_files(tmp_path: Path) -> None:
    from safetensors import safe_open

    source = sharded(tmp_path / "source")
    rf.compress_checkpoint(source, tmp_path / "out", rf.Ratio(0.4))
    for name, file in Checkpoint(tmp_path / "out").files.items():
        with safe_open(tmp_path / "out" / name, framework="np") as stored:
            assert set(stored.keys()) == file.header.entries.keys()
            assert stored.metadata() == file.header.metadata
            for tensor, entry in file.header.entries.items():
                assert stored.get_tensor(tensor).tobytes() == file.data(entry).tobytes()
                assert (entry.begin % SIZES[entry.dtype]) == 0


@pytest.fixture(scope="module", params=["processes:2", "threads:2"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    with opened(request.param) as pool:
        yield pool


@pytest.mark.parametrize("policy", [rf.Ratio(0.4), rf.Budget(params=0.5)], ids=repr)
def test_executors_give_the_same_files(tmp_path: Path, executor: Executor, policy) -> None:
    source = sharded(tmp_path / "source", shape=(60, 90))
    plan = rf.compress_checkpoint(source, tmp_path / "serial", policy)
    found = rf.compress_checkpoint(source, tmp_path / "out", policy, executor=executor)
    assert found == plan
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
