"""`rankfold report`: from everything that holds a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.cli.app import app
from rankfold.cli.report import run


@pytest.fixture
def small() -> rf.Compressed:
    torch.manual_seed(0)
    return rf.compress(nn.Sequential(nn.Linear(48, 64), nn.ReLU()), rf.Ranks(8))


def test_of_a_folder_and_of_the_plan_in_it(
    small: rf.Compressed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save(tmp_path / "small")
    run(tmp_path / "small", tmp_path / "a.html")
    assert capsys.readouterr().out == f"written to {tmp_path / 'a.html'}\n"
    run(tmp_path / "small" / "plan.json", tmp_path / "b.html")
    assert small.report(tmp_path / "c.html") == tmp_path / "c.html"
    pages = [(tmp_path / f"{name}.html").read_bytes() for name in "abc"]
    assert pages[0] == pages[1] == pages[2]


def test_of_a_plan_that_was_written_as_json(small: rf.Compressed, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(small.plan.to_json())
    run(file, tmp_path / "a.html")
    assert "Truncated SVD, rank 8" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_of_an_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = torch.randn(48, 64).numpy()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="first")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "whole.onnx")
    small = rf.compress(tmp_path / "whole.onnx", rf.Ranks(4))
    small.save(tmp_path / "small.onnx")
    run(tmp_path / "small.onnx", tmp_path / "a.html")
    assert "Truncated SVD, rank 4" in (tmp_path / "a.html").read_text(encoding="utf-8")
    with pytest.raises(rf.RankfoldError, match="holds no plan"):
        run(tmp_path / "whole.onnx", tmp_path / "b.html")


def test_the_command_takes_a_folder_and_a_file(small: rf.Compressed, tmp_path: Path) -> None:
    small.save(tmp_path / "small")
    page = tmp_path / "page.html"
    app(args=["report", str(tmp_path / "small"), "-o", str(page)], standalone_mode=False)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_has_no_plan_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(rf.RankfoldError, match="missing or not a plain file"):
        run(tmp_path / name, tmp_path / "a.html")
