"""Tensors of a model in a safetensors file."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tests.onnx import graphs

from rankfold.errors import RankfoldError
from rankfold_onnx.adapter import OnnxAdapter
from rankfold_onnx.graph import Graphs
from rankfold_onnx.state_io import load, save, size, tensors


def test_the_weights_that_are_written_are_those_of_the_graph(tmp_path: Path) -> None:
    model = graphs.perceptron()
    OnnxAdapter().save_weights(model, tmp_path / "weights.safetensors")
    stored = load_file(tmp_path / "weights.safetensors")
    for tensor in model.graph.initializer:
        assert (stored[tensor.name] == numpy_helper.to_array(tensor)).all()


def test_tensors_of_branches_and_of_nodes_have_their_path_in_front() -> None:
    names = tensors(Graphs(graphs.conditional()))
    assert set(names) == {"shared", "zero", "choice.then_branch.u", "choice.else_branch.vv"}
    assert size(Graphs(graphs.perceptron())) == 20 * 12 + 20 + 20 * 7 + 7


def test_a_model_is_filled_whole_or_not_at_all(tmp_path: Path) -> None:
    model, other = graphs.conditional(), graphs.conditional()
    for tensor in tensors(Graphs(other)).values():
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array + 1, array.dtype), tensor.name))
    save(Graphs(other), tmp_path / "w.safetensors")
    load(Graphs(model), [tmp_path / "w.safetensors"])
    assert model == other
    before = graphs.perceptron()
    target = graphs.perceptron()
    with pytest.raises(RankfoldError):
        load(Graphs(target), [tmp_path / "w.safetensors"])
    assert target == before


def test_texts_belong_to_the_structure(tmp_path: Path) -> None:
    model = graphs.perceptron()
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"a"]))
    save(Graphs(model), tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"w1", "b1", "w2", "b2"}


def test_values_that_are_not_loaded_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    model = graphs.perceptron()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(RankfoldError, match=r"'w1': its values are in a file.*use onnx\.load"):
        save(Graphs(model), tmp_path / "w.safetensors")
