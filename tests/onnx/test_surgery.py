"""What is put in the place of layers, and what of a model stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper  # noqa: E402
from tests.onnx import graphs  # noqa: E402
from tests.onnx.graphs import constant, drawn, node  # noqa: E402

import rankfold as rf  # noqa: E402
from rankfold_onnx.adapter import OnnxAdapter  # noqa: E402


def described(model: Any) -> Any:
    """A model with all that a user may have written into it."""
    model.doc_string = "what it is"
    model.domain, model.model_version = "org.example", 7
    model.metadata_props.add(key="author", value="somebody")
    model.graph.doc_string = "the graph"
    model.graph.node[0].doc_string = "the first layer"
    model.graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
    return model


def test_all_that_is_said_of_a_model_stays() -> None:
    model = described(graphs.perceptron())
    x = drawn(5, 12)
    small = rf.compress(model, rf.Ranks(3), inputs=x).model
    expected = graphs.run(small, x=x)
    for name in ("doc_string", "domain", "model_version", "producer_name", "ir_version"):
        assert getattr(small, name) == getattr(model, name)
    assert list(small.metadata_props) == list(model.metadata_props)
    assert list(small.opset_import) == list(model.opset_import)
    assert small.graph.name == model.graph.name
    assert small.graph.doc_string == "the graph"
    assert list(small.graph.input) == list(model.graph.input)
    assert list(small.graph.output) == list(model.graph.output)
    names = [n.name for n in small.graph.node]
    assert names == ["first.0", "first.1", "", "second.0", "second.1", "second.bias"]
    assert [n.doc_string for n in small.graph.node[:3]] == ["the first layer"] * 2 + [""]
    # What is said of values holds of those that are there; nothing is said of others.
    values = {name for n in small.graph.node for name in n.output}
    assert {item.name for item in small.graph.value_info} <= values
    assert {tensor.name for tensor in small.graph.initializer} == {
        *("w1.0", "w1.1", "b1", "w2.0", "w2.1", "b2")
    }
    assert expected.shape == (5, 7)


def test_the_original_stays_as_it_is_unless_inplace() -> None:
    model = graphs.convolutional()
    before = model.SerializeToString(deterministic=True)
    x = drawn(2, 3, 12, 10)
    small = rf.compress(model, rf.Ranks(3), inputs=x)
    assert model.SerializeToString(deterministic=True) == before
    same = rf.compress(model, rf.Ranks(3), inputs=x, inplace=True)
    assert same.model is model
    assert model.SerializeToString(deterministic=True) == small.model.SerializeToString(
        deterministic=True
    )


def test_a_compressed_model_can_be_compressed_again() -> None:
    model = graphs.convolutional()
    x = drawn(2, 3, 12, 10)
    small = rf.compress(model, rf.Ranks(3), inputs=x).model
    smaller = rf.compress(small, rf.Ranks("full"), inputs=x)
    graphs.near(graphs.run(smaller.model, x=x), graphs.run(small, x=x))
    names = [tensor.name for tensor in smaller.model.graph.initializer]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("positive", [True, False])
def test_layers_in_branches_are_replaced_on_both_sides(positive: bool) -> None:
    model = graphs.conditional()
    x = np.abs(drawn(5, 12)) * (1 if positive else -1)
    expected = graphs.run(model, x=x)
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert {layer.path for layer in small.plan.replaced} == {
        "choice.then_branch.inner",
        "choice.else_branch.last",
        "choice.else_branch.inner",
    }
    # The weight that both branches share is one layer, and its tensors stay in the main graph.
    assert OnnxAdapter().aliases(model, "choice.else_branch.last") == ("choice.then_branch.last",)
    assert {tensor.name for tensor in small.model.graph.initializer} == {"shared.0", "shared.1"}
    graphs.near(graphs.run(small.model, x=x), expected)


def test_the_body_of_a_loop_is_replaced_by_its_weights_alone() -> None:
    model = graphs.looped()
    x = drawn(5, 10)
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    graphs.near(graphs.run(small.model, x=x), graphs.run(model, x=x))
    assert {layer.path for layer in small.plan.replaced} == {"outer", "loop.body.inner", "head"}
    assert any("loop.body.inner" in note for note in small.plan.notes)  # MACs are not counted
    batches = [drawn(8, 10, seed=seed) for seed in range(4)]
    learnt = rf.compress(model, rf.Energy(0.9), inputs=x, calibration=batches, include="*")
    assert "no moments" in learnt.plan["loop.body.inner"].reason


def test_a_shared_bias_stays_for_its_other_readers() -> None:
    nodes = [
        node("Gemm", "x w b", "h", "first"),
        node("Gemm", "h v b", "s", "second"),
        node("Add", "s b", "y", "third"),
    ]
    tensors = {"w": drawn(12, 12), "v": drawn(12, 12, seed=1), "b": drawn(12)}
    model = graphs.model(nodes, tensors, {"x": ["n", 12]}, {"y": ["n", 12]})
    batches = [drawn(8, 12, seed=seed) for seed in range(4)]
    x = batches[0][:5]
    small = rf.compress(model, rf.Ranks(4), inputs=x, calibration=batches).model
    kept = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    assert (kept["b"] == tensors["b"]).all()
    assert {"b.bias", "b.bias_"} <= set(kept)
    graphs.run(small, x=x)


def test_constants_of_nodes_stay_constants_of_nodes() -> None:
    nodes = [
        constant("w", drawn(12, 10)),
        constant("b", drawn(10)),
        node("MatMul", "x w", "p", "layer"),
        node("Add", "p b", "y"),
    ]
    model = graphs.model(nodes, {}, {"x": [5, 12]}, {"y": [5, 10]})
    x = drawn(5, 12)
    small = rf.compress(model, rf.Ranks(3), inputs=x, include="*").model
    assert not small.graph.initializer
    constants = {n.output[0] for n in small.graph.node if n.op_type == "Constant"}
    assert constants == {"w.0", "w.1", "b"}
    graphs.run(small, x=x)


def test_names_that_are_taken_are_not_given_again() -> None:
    model = graphs.perceptron()
    model.graph.initializer.append(numpy_helper.from_array(drawn(3), "w1.0"))
    model.graph.node.append(helper.make_node("Identity", ["w1.0"], ["first.1"]))
    x = drawn(5, 12)
    small = rf.compress(model, rf.Ranks(3), inputs=x).model
    names = [tensor.name for tensor in small.graph.initializer]
    assert sorted(names) == sorted(["w1.0", "w1.0_", "w1.1", "b1", "w2.0", "w2.1", "b2"])
    graphs.run(small, x=x)
