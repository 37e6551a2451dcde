"""Models as one list of nodes, with the branches that are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from onnx import helper
from tests.onnx import graphs
from tests.onnx.graphs import constant, drawn, node

from rankfold_onnx import runtime
from rankfold_onnx.flat_graph import FlatGraph, flattened, names_read, renamed
from rankfold_onnx.layers import layers_of

X = np.abs(drawn(5, 12))


def flat(model: Any, feeds: Any = None, **options: Any) -> FlatGraph:
    return flattened(*layers_of(model), feeds, **options)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_branch_that_is_taken_takes_the_place_of_its_condition(sign: int) -> None:
    model, x = graphs.conditional(), (sign * X).astype(np.float32)
    taken = flat(model, {"x": x})
    branch = "then_branch" if sign > 0 else "else_branch"
    assert taken.taken == (f"choice.{branch}.",)
    assert "If" not in {n.op_type for n in taken.nodes}
    assert [call.path for call in taken.calls][-1] == "choice.else_branch.last"
    assert taken.outputs == ["y"]
    inputs = list(model.graph.input)
    part = taken.part([taken.nodes[i] for i in taken.needed(["y"])], inputs, ["y"])
    (y,) = runtime.run(runtime.session(part), ["y"], {"x": x})
    graphs.near(y, graphs.run(model, x=x))


def test_without_inputs_every_condition_is_what_it_is_said_to_be() -> None:
    model = graphs.conditional()
    for condition, branch in ((True, "then"), (False, "else")):
        assert flat(model, condition=condition).taken == (f"choice.{branch}_branch.",)


def test_a_layer_and_its_bias_are_one_call() -> None:
    model = graphs.convolutional()
    body = next(call for call in flat(model).calls if call.path == "body")
    nodes = flat(model).nodes
    assert [nodes[index].op_type for index in body.nodes] == ["Conv", "Add"]
    assert (body.x, body.y) == ("ar", "bb")


def test_loops_stay_nodes_whose_layers_are_no_calls() -> None:
    looped = flat(graphs.looped())
    assert [call.path for call in looped.calls] == ["outer", "head"]
    assert "Loop" in {n.op_type for n in looped.nodes}


def test_only_nodes_that_lead_to_a_value_are_needed() -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Tanh", "a", "b"),
        node("Exp", "x", "c"),
        node("Add", "b c", "y"),
    ]
    graph = flat(graphs.model(nodes, {}, {"x": [5, 6]}, {"y": [5, 6]}))
    assert graph.needed(["y"]) == [0, 1, 2, 3]
    assert graph.needed(["b"]) == [0, 1]
    assert graph.needed(["y"], known=["a"]) == [1, 2, 3]
    assert graph.producers() == {"a": 0, "b": 1, "c": 2, "y": 3}


def test_a_part_has_the_constants_that_it_reads() -> None:
    nodes = [constant("two", np.float32(2)), node("Mul", "x two", "h"), node("MatMul", "h w", "y")]
    model = graphs.model(nodes, {"w": drawn(6, 4), "v": drawn(3)}, {"x": [5, 6]}, {"y": [5, 4]})
    graph = flat(model)
    assert [n.op_type for n in graph.nodes] == ["Mul", "MatMul"]
    part = graph.part(graph.nodes[1:], [runtime.typed("h", drawn(5, 6))], ["y"])
    assert [t.name for t in part.graph.initializer] == ["w"]
    part = graph.part(graph.nodes, list(model.graph.input), ["y", "two"])
    assert sorted(t.name for t in part.graph.initializer) == ["two", "w"]


def test_names_of_subgraphs_that_come_from_around_them_are_read_and_renamed() -> None:
    branch = helper.make_graph(
        [node("Add", "outer own", "sum"), node("Mul", "sum outer", "out")],
        "branch",
        [],
        [helper.make_tensor_value_info("out", graphs.FLOAT, None)],
        [helper.make_tensor("own", graphs.FLOAT, [1], [1.0])],
    )
    condition = node("If", "flag", "y", then_branch=branch, else_branch=branch)
    assert set(names_read(condition)) == {"flag", "outer"}
    new = renamed(condition, {"flag": "f", "outer": "o", "own": "never", "y": "z"})
    assert set(names_read(new)) == {"f", "o"}
    assert list(new.output) == ["z"]
    assert set(names_read(condition)) == {"flag", "outer"}
