"""Scopes, names and constants of graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tests.onnx import graphs  # noqa: E402
from tests.onnx.graphs import constant, drawn, node  # noqa: E402

import rankfold as rf  # noqa: E402
from rankfold.errors import Refused  # noqa: E402
from rankfold_onnx.graph import Graphs, attribute, is_float, op_of, size_of  # noqa: E402

W = drawn(12, 7)


def test_values_in_files_that_are_not_loaded_are_refused(tmp_path: Path) -> None:
    model = graphs.perceptron()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert "not loaded" in rf.plan(bare, rf.Ranks(2)).layers[0].reason
    assert rf.plan(tmp_path / "m.onnx", rf.Ranks(2)).replaced


def read(nodes: list[Any], tensors: Any, **options: Any) -> Graphs:
    return Graphs(graphs.model(nodes, tensors, {"x": [5, 12]}, {"y": None}, **options))


def test_paths_are_names_of_nodes_or_of_what_they_give() -> None:
    nodes = [
        node("MatMul", "x w", "p", "same"),
        node("MatMul", "p v", "q", "same"),
        node("MatMul", "q u", "y"),
        node("Relu", "y", "z", "q"),
    ]
    tensors = {"w": W, "v": drawn(7, 6), "u": drawn(6, 5)}
    assert list(read(nodes, tensors).paths.values()) == ["p", "q", "y", "q_"]


def test_a_tensor_is_read_through_transpositions_and_names() -> None:
    weight = drawn(2, 3, 5)
    nodes = [
        constant("w", weight),
        node("Identity", "w", "same"),
        node("Transpose", "same", "t", perm=[1, 2, 0]),
        node("Transpose", "t", "r"),
        node("Flatten", "r", "y"),
    ]
    within = read(nodes, {})
    behind = within.constant(within.scopes[0], "r")
    assert behind is not None
    expected = weight.transpose(1, 2, 0).T
    np.testing.assert_array_equal(behind.array(), expected)
    assert behind.shape == expected.shape
    assert (behind.stored, behind.in_node) == ((0, "w"), True)
    assert behind.values == {(0, name) for name in ("w", "same", "t", "r")}
    assert [use.index for use in within.readers((0, "w"))] == [4]
    assert within.constant(within.scopes[0], "x") is None
    assert within.constant(within.scopes[0], "nowhere") is None


def test_a_damaged_tensor_is_refused() -> None:
    within = read([node("MatMul", "x w", "y")], {"w": W})
    behind = within.constant(within.scopes[0], "w")
    assert behind is not None
    behind.tensor.raw_data = behind.tensor.raw_data[:7]
    with pytest.raises(Refused, match="the tensor 'w' is damaged"):
        behind.array()


def test_branches_see_the_names_around_them_and_keep_their_own_apart() -> None:
    within = Graphs(graphs.conditional())
    main, *branches = within.scopes
    names = {"choice.then_branch.": "u", "choice.else_branch.": "vv"}
    assert {scope.prefix for scope in branches} == names.keys()
    for scope in branches:
        inner = names[scope.prefix]
        assert scope.parent is main
        assert scope.looped == ""
        assert scope.owner("shared") is main
        assert scope.owner(inner) is scope
        assert main.owner(inner) is None
    assert len(within.uses((0, "shared"))) == 2
    (body,) = Graphs(graphs.looped()).scopes[1:]
    assert body.looped == "Loop 'loop'"
    assert body.inputs == {"turn", "go", "state"}


def test_why_a_weight_is_no_tensor_is_told_by_where_it_comes_from() -> None:
    nodes = [
        node("Add", "w w", "sum"),
        node("Relu", "x", "r"),
        node("RandomNormal", "", "noise", shape=[12, 7]),
        node("Identity", "sum", "same"),
        node("MatMul", "x w", "y"),
    ]
    within = read(nodes, {"w": W})
    main = within.scopes[0]
    reasons = {
        "missing": "'missing' is not in the graph",
        "x": "'x' is an input of the graph",
        "same": "'sum' is computed from constants by Add; fold constants first",
        "r": "'r' is computed by Relu as the model runs",
        "noise": "'noise' is computed by RandomNormal as the model runs",
    }
    for name, reason in reasons.items():
        assert reason in within.why_not_constant(main, name)
    constants = {
        name: within.is_constant(main, name) for name in ("w", "same", "r", "noise", "x", "")
    }
    assert [name for name, is_constant in constants.items() if is_constant] == ["w", "same"]


def test_an_initializer_among_the_inputs_may_be_overridden_from_version_4_on() -> None:
    model = graphs.model([node("MatMul", "x w", "y")], {"w": W}, {"x": [5, 12]}, {"y": None})
    model.graph.input.append(helper.make_tensor_value_info("w", graphs.FLOAT, W.shape))
    for version, overridable in ((3, False), (8, True)):
        model.ir_version = version
        within = Graphs(model)
        behind = within.constant(within.scopes[0], "w")
        assert behind is not None
        assert within.is_overridable(behind) == overridable


def test_attributes_and_types_are_plain_values() -> None:
    foreign = helper.make_node(
        "Conv", ["x"], ["y"], domain="com.example", group=3, auto_pad="VALID"
    )
    assert op_of(foreign) == "com.example.Conv"
    assert op_of(helper.make_node("Conv", ["x"], ["y"], domain="ai.onnx")) == "Conv"
    assert (attribute(foreign, "group"), attribute(foreign, "auto_pad")) == (3, "VALID")
    assert attribute(node("Conv", "x", "y", pads=[1, 2]), "pads") == (1, 2)
    assert attribute(foreign, "missing", 7) == 7
    tensor = numpy_helper.from_array(np.zeros((3, 0, 2), np.float16))
    assert (is_float(tensor), size_of(tensor)) == (True, 0)
    assert not is_float(TensorProto(data_type=TensorProto.INT8))
    assert size_of(TensorProto()) == 1
