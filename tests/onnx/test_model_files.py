"""ONNX files: read, written in one call, with external data, and on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from tests.onnx import graphs  # noqa: E402
from tests.onnx.graphs import drawn  # noqa: E402

import rankfold as rf  # noqa: E402
from rankfold.cli.app import app  # noqa: E402
from rankfold_onnx.model_files import plan_of  # noqa: E402

X = drawn(2, 3, 12, 10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    onnx.save(graphs.convolutional(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def cli(*arguments: object) -> None:
    app(args=[str(argument) for argument in arguments], standalone_mode=False)


def opened(file: Path) -> np.ndarray:
    onnx.checker.check_model(file, full_check=True)
    return ort.InferenceSession(file).run(None, {"x": X})[0]


def test_a_result_is_saved_by_one_call_into_a_file_that_runs(file: Path) -> None:
    small = rf.compress(file, rf.Ranks(3), inputs=X)
    before = small.model.SerializeToString(deterministic=True)
    small.save(file.with_name("small.onnx"))
    assert small.model.SerializeToString(deterministic=True) == before
    graphs.near(opened(file.with_name("small.onnx")), graphs.run(small.model, x=X))
    assert plan_of(onnx.load(file.with_name("small.onnx"))) == small.plan
    assert plan_of(small.model) is None
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.onnx", "small.onnx"]


def test_external_data_stays_external(file: Path) -> None:
    source = file.with_name("outside.onnx")
    onnx.save(graphs.convolutional(), source, save_as_external_data=True, size_threshold=0)
    cli("compress", source, "-o", file.with_name("small.onnx"), "--policy", "energy:0.99")
    names = {path.name for path in file.parent.iterdir()}
    assert {"small.onnx", "small.onnx.data"} <= names
    assert not any(name.startswith(".") for name in names)
    expected = rf.compress(file, rf.Energy(0.99)).model
    graphs.near(opened(file.with_name("small.onnx")), graphs.run(expected, x=X))


def test_the_command_line_takes_data(file: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    np.savez(file.with_name("data.npz"), x=rng.standard_normal((40, 3, 12, 10), np.float32))
    target = file.with_name("small.onnx")
    data = file.with_name("data.npz")
    cli("compress", file, "-o", target, "--policy", "budget:macs=0.5", "--calibration", data)
    plan = plan_of(onnx.load(target))
    assert plan is not None
    assert plan.macs is not None
    assert plan.macs[1] <= 0.5 * plan.macs[0]
    assert plan.loss is not None
    assert "written to" in capsys.readouterr().out
    assert opened(target).shape == (2, 5)


def test_a_plan_from_a_dry_run_is_carried_out(file: Path, capsys: Any) -> None:
    cli("compress", file, "--policy", "ranks:3", "--dry-run", "--json")
    plan = file.with_name("plan.json")
    plan.write_text(capsys.readouterr().out)
    assert sorted(p.name for p in file.parent.iterdir()) == sorted([file.name, plan.name])
    cli("compress", file, "-o", file.with_name("small.onnx"), "--plan", plan)
    expected = rf.compress(file, rf.Ranks(3)).model
    graphs.near(opened(file.with_name("small.onnx")), graphs.run(expected, x=X))


def test_a_folder_may_be_written_too(file: Path) -> None:
    cli("compress", file, "-o", file.with_name("out"), "--policy", "ranks:3")
    loaded = rf.load(file, file.with_name("out"))
    graphs.near(graphs.run(loaded, x=X), graphs.run(rf.compress(file, rf.Ranks(3)).model, x=X))


def test_inspect_lists_the_layers(file: Path, capsys: Any) -> None:
    cli("inspect", file)
    out = capsys.readouterr().out
    assert all(name in out for name in ("stem", "body", "head"))
    assert "3 tensors" in out


BAD = {
    "is the model itself": ("{0}",),
    "--drop is for checkpoints": ("{1}/small.onnx", "--drop", "*"),
    "--moments is for checkpoints": ("{1}/small.onnx", "--moments", "m"),
    "cannot be read as an .npz file": ("{1}/small.onnx", "--inputs", "{0}"),
    "is a folder": ("{1}/folder.onnx",),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_done_is_said_before_anything_is_written(message: str, file: Path) -> None:
    file.with_name("folder.onnx").mkdir()
    before = file.read_bytes()
    arguments = [text.format(file, file.parent) for text in BAD[message]]
    with pytest.raises(rf.RankfoldError, match=message):
        cli("compress", file, "--policy", "ranks:3", "-o", *arguments)
    assert file.read_bytes() == before
    assert not file.with_name("small.onnx").exists()


def test_calibration_is_for_whole_models(tmp_path: Path) -> None:
    with pytest.raises(rf.RankfoldError, match="--calibration is for models"):
        cli("compress", tmp_path / "x.safetensors", "-o", tmp_path / "o", "--calibration", "c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.onnx", b"", "no graph"),
        ("damaged.onnx", b"\x08\xff\xff", "cannot be read as an ONNX model"),
        ("model.h5", b"", "known are an ONNX model"),
        ("missing.onnx", None, "cannot be read as an ONNX model"),
    ],
)
def test_a_file_that_is_no_model_is_an_error(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(rf.RankfoldError, match=message):
        rf.plan(tmp_path / name, rf.Ranks(2))


def test_a_missing_package_is_named(file: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None; import rankfold as rf; "
        f"rf.plan({str(file)!r}, rf.Ranks(2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'rankfold[onnx]'" in done.stderr
