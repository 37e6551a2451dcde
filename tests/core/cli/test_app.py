"""The command line, in this process where a process of its own would show nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.core.cli.commands import Run, network, process

import rankfold as rf
from rankfold.checkpoints.reader import Checkpoint


@pytest.mark.parametrize("weights", ["w.safetensors", "w.pt"])
def test_compress_writes_a_folder_that_loads(folder: Path, weights: str, run: Run) -> None:
    arguments = ("compress", "mymodels:make", "--weights", weights, "-o", "out")
    done = run(*arguments, "--policy", "ratio:1/3", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "layers replaced" in done.stdout
    expected = rf.compress(network(), rf.Ratio(1 / 3)).model
    loaded = rf.load(network(), folder / "out")
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(loaded(x), expected(x))


@pytest.mark.parametrize(("weights", "workers"), [("w.safetensors", 2), ("w.pt", 1)])
def test_compress_takes_a_checkpoint_without_its_model(
    folder: Path, weights: str, workers: int, run: Run
) -> None:
    (folder / "shapes.json").write_text('{"0": [1, 8, 8], "2": [1, 6, 6], "4": [1]}')
    arguments = ("compress", weights, "-o", "out", "--policy", "ratio:1/3")
    done = run(
        *arguments, "--inputs", "shapes.json", "--executor", f"processes:{workers}", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "written to out" in done.stdout
    assert "MACs" in done.stdout
    expected = rf.compress(network(), rf.Ratio(1 / 3)).model
    loaded = rf.load(network(), folder / "out")
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(loaded(x), expected(x))
    assert {p.name for p in (folder / "out").iterdir()} == {"plan.json", "weights.safetensors"}


def test_compress_takes_patterns_and_methods(folder: Path, run: Run) -> None:
    arguments = ("compress", "mymodels:make", "--weights", "w.safetensors", "-o", "out")
    options = ("--policy", "energy:0.5", "--methods", "svd,cp", "--exclude", "0")
    assert run(*arguments, *options, cwd=folder).returncode == 0
    saved = (folder / "out" / "plan.json").read_text()
    assert "excluded by '0'" in saved
    assert '"cp"' in saved


def test_inspect_shows_every_matrix_and_kernel(folder: Path, run: Run) -> None:
    done = run("inspect", "half.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    for word in ("half", "19×23", "kernel", "7×5×3×2", "tucker2", "cp3", "EVBMF"):
        assert word in done.stdout
    assert "2 tensors; 1 others" in done.stdout


def test_inspect_shows_names_as_they_stand(folder: Path, run: Run) -> None:
    file = "[bold]x[].safetensors"
    save_file({"[i]layer[31m": torch.randn(19, 23)}, folder / file)
    done = run("inspect", file, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{file}: parameters left" in done.stdout
    assert "[i]layer[31m" in done.stdout


def test_an_error_shows_control_characters_as_they_stand(folder: Path, run: Run) -> None:
    done = run("compress", "mymodels:coloured", *COMPRESS[2:], cwd=folder)
    assert r"\x1b[31m" in done.stderr
    assert "\x1b" not in done.stderr


def test_inspect_reads_float8(folder: Path, run: Run) -> None:
    types = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
    stored = {str(dtype): torch.randn(19, 23).to(dtype) for dtype in types}
    stored["kernel"] = torch.randn(7, 5, 3, 2).to(torch.float8_e4m3fn)
    save_file({**stored, "whole": torch.randn(29, 31)}, folder / "float8.safetensors")
    done = run("inspect", "float8.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "6 tensors; 0 others" in done.stdout
    checkpoint = Checkpoint(folder / "float8.safetensors")
    for name, values in stored.items():
        assert np.array_equal(checkpoint.array(name), values.float().numpy())


def test_characters_that_standard_output_cannot_encode_are_replaced(folder: Path) -> None:
    command = [sys.executable, "-m", "rankfold.cli", *CHECKPOINT, "--policy", "ratio:1/3"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Conv 3?17" in done.stdout


def test_compress_does_not_replace_the_working_directory(folder: Path, run: Run) -> None:
    (folder / "empty").mkdir()
    arguments = ("compress", "mymodels:make", "--weights", "../w.safetensors", "-o", ".")
    done = run(*arguments, cwd=folder / "empty")
    assert done.returncode == 2
    assert "'.' is or holds the working directory" in done.stderr
    assert (folder / "empty").is_dir()


CHECKPOINT = ("compress", "w.safetensors", "-o", "out")
COMPRESS = ("compress", "mymodels:make", "--weights", "w.safetensors", "-o", "out")
BAD = {
    "unknown command": (("squash",), "No such command"),
    "missing argument": (("compress",), "Missing argument"),
    "no such checkpoint": (("compress", "no.pt", "-o", "out"), "is not a file or a folder"),
    "factory without weights": (("compress", "mymodels:make", "-o", "out"), "needs --weights"),
    "no checkpoint": (("compress", "text.safetensors", "-o", "out"), "not a safetensors file"),
    "unknown executor": (
        ("compress", "w.pt", "-o", "out", "--executor", "cloud:3"),
        "executor 'cloud:3' is unknown",
    ),
    "no scheduler": (
        ("compress", "w.pt", "-o", "out", "--executor", "dask://127.0.0.1:1"),
        "no scheduler answers",
    ),
    "inputs of a factory": ((*COMPRESS, "--inputs", "w.pt"), "inputs 'w.pt'; write a shape"),
    "inputs that are no JSON": (
        ("compress", "w.pt", "-o", "out", "--inputs", "text.safetensors"),
        "cannot be read",
    ),
    "inputs of no layer": (
        ("compress", "w.pt", "-o", "out", "--inputs", "shapes.json"),
        "matches no layer",
    ),
    "missing file": (("inspect", "nowhere.safetensors"), "nowhere.safetensors"),
    "inspecting no checkpoint": (("inspect", "text.safetensors"), "not a safetensors file"),
    "truncated checkpoint": (("inspect", "cut.safetensors"), "is damaged"),
    "unknown policy": ((*COMPRESS, "--policy", "magic"), "'magic' is unknown"),
    "policy out of range": ((*COMPRESS, "--policy", "energy:1.5"), "share 1.5"),
    "policy that is no number": ((*COMPRESS, "--policy", "energy:much"), "'much'"),
    "unknown method": ((*COMPRESS, "--methods", "svd,magic"), "'magic' is unknown"),
    "pattern without a layer": ((*COMPRESS, "--include", "head"), "'head' matches no layer"),
    "rank too high": ((*COMPRESS, "--policy", "ranks:0"), "rank 0"),
    "factory without colon": (("compress", "mymodels", *COMPRESS[2:]), "package.module:factory"),
    "factory of no module": (("compress", "no.such:make", *COMPRESS[2:]), "cannot be imported"),
    "factory that is missing": (("compress", "mymodels:nope", *COMPRESS[2:]), "cannot be imported"),
    "factory that raises": (("compress", "mymodels:broken", *COMPRESS[2:]), "no such thing"),
    "factory in a script": (("compress", "script:make", *COMPRESS[2:]), "it calls sys.exit(None)"),
    "factory that exits": (("compress", "mymodels:leaves", *COMPRESS[2:]), "it calls sys.exit(0)"),
    "factory of no model": (("compress", "builtins:object", *COMPRESS[2:]), "no adapter"),
    "weights missing": ((*COMPRESS[:3], "none.pt", "-o", "out"), "'none.pt'"),
    "weights of another": ((*COMPRESS[:3], "half.safetensors", "-o", "out"), "does not fit"),
    "weights truncated": ((*COMPRESS[:3], "cut.safetensors", "-o", "out"), "is damaged"),
    "output is a file": ((*COMPRESS[:4], "-o", "w.pt"), "is a file"),
    "output below a file": ((*COMPRESS[:4], "-o", "w.pt/out"), "cannot write"),
    "output holds other files": ((*COMPRESS[:4], "-o", "."), "holds"),
    "demo without such a backend": (("demo", "--backend", "abacus"), "'abacus'"),
    "demo into a file": (("demo", "-o", "w.pt"), "cannot write"),
}


def one_line(folder: Path, name: str, run: Run) -> None:
    arguments, message = BAD[name]
    before = sorted(folder.iterdir())
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("rankfold: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert [p for p in sorted(folder.iterdir()) if p.name != "__pycache__"] == before


@pytest.mark.parametrize("name", BAD)
def test_an_error_is_one_line_and_exit_code_2(
    folder: Path, name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankfold.cli.executors._PATIENCE", 0.2)
    one_line(folder, name, run)


@pytest.mark.parametrize("name", ["unknown command", "factory in a script"])
def test_an_error_of_the_process_is_one_line_and_exit_code_2(folder: Path, name: str) -> None:
    one_line(folder, name, process)


@pytest.mark.parametrize("option", ["--version", "-h"])
def test_version_and_help_are_told_at_once(run: Run, tmp_path: Path, option: str) -> None:
    told = run(option, cwd=tmp_path)
    assert told.returncode == 0
    assert (f"rankfold {rf.__version__}" if option == "--version" else "compress") in told.stdout


def test_help_loads_no_framework(tmp_path: Path) -> None:
    heavy = "torch", "jax", "flax", "onnx", "onnxruntime", "scipy", "tensorly", "transformers"
    script = (
        "import sys; from rankfold.cli import main; sys.argv = ['rankfold', 'compress', '--help']\n"
        "try: main()\n"
        f"finally: assert not {set(heavy)!r} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout


def test_names_of_the_package_are_those_for_users() -> None:
    assert dir(rf) == sorted([*rf.__all__, "__version__"])
    assert all(hasattr(rf, name) for name in dir(rf))
