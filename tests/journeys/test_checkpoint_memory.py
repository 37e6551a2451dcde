"""Memory is bounded by a multiple of the largest tensor, however many there are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.core.checkpoints.files import SIZES, entry, indexed, sharded
from tests.peak_memory import PEAK

MIB = 2**20
LARGEST = 2 * MIB
SCRIPT = (
    PEAK
    + """
import rankfold as rf

source, out, policy, space = sys.argv[1:]
policy = {"ratio": rf.Ratio(0.3), "energy": rf.Energy(0.4), "budget": rf.Budget(params=0.5)}[policy]
rf.compress_checkpoint(Path(source).parent / "small", out + "-small", policy)
if int(space):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(space),) * 2)


before = peak()
plan = rf.compress_checkpoint(source, out, policy)
assert plan.replaced
print(peak() - before)
"""
)


def large(folder: Path, files: int, layers: int, dtype: str = "F32") -> Path:
    """Files of tensors of 2 MiB, as quickly written as a disk takes them."""
    rows = 64  # few, so that decomposing takes little time
    shape = (rows, LARGEST // SIZES[dtype] // rows)
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(shape) * np.geomspace(1.0, 0.01, rows)[:, None]).astype("f4")
    data = values.tobytes() if dtype == "F32" else (values.view("u4") >> 16).astype("u2").tobytes()
    owner = {}
    folder.mkdir()
    for place in range(files):
        names = [f"blocks.{place}.{layer}.fc.weight" for layer in range(layers)]
        header = {name: entry(dtype, shape, i * LARGEST) for i, name in enumerate(names)}
        text = json.dumps(header).encode()
        name = f"model-{place}.safetensors"
        with (folder / name).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for layer in range(layers):
                turned = SIZES[dtype] * 64 * (layer + 1)
                stream.write(data[turned:] + data[:turned])
        owner |= dict.fromkeys(names, name)
    indexed(folder, owner)
    return folder


def peak(source: Path, out: Path, policy: str, space: int = 0) -> int:
    """Bytes that compressing takes at its peak besides what is imported."""
    if not (source.parent / "small").exists():
        sharded(source.parent / "small")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), str(out), policy, str(space)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_the_peak_is_a_small_multiple_of_the_largest_tensor(tmp_path: Path) -> None:
    source = large(tmp_path / "source", files=4, layers=9)
    assert peak(source, tmp_path / "out", "ratio") < 8 * LARGEST + 20 * MIB
    assert peak(source, tmp_path / "budget", "budget") < 20 * LARGEST + 20 * MIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="has no limit on addresses")
@pytest.mark.parametrize(("policy", "dtype"), [("ratio", "F32"), ("budget", "BF16")])
def test_gigabytes_are_compressed_in_little_memory(tmp_path: Path, policy: str, dtype: str) -> None:
    source = large(tmp_path / "source", files=8, layers=192, dtype=dtype)
    found = peak(source, tmp_path / "out", policy, space=300 * MIB)
    noted = 8 * 192 * MIB // 8  # a budget keeps the costs and losses of each layer's offers
    assert found < 24 * LARGEST + 20 * MIB + (noted if policy == "budget" else 0)
