"""Chains of a compressed graph become the layers of the original again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import numpy_helper  # noqa: E402
from tests.onnx import graphs  # noqa: E402
from tests.onnx.graphs import drawn, node  # noqa: E402

import rankfold as rf  # noqa: E402

GRAPHS: dict[str, tuple[Callable[[], Any], np.ndarray]] = {
    "perceptron": (graphs.perceptron, drawn(5, 12)),
    "convolutional": (graphs.convolutional, drawn(2, 3, 12, 10)),
    "branch": (graphs.conditional, np.abs(drawn(5, 12))),
    "other branch": (graphs.conditional, -np.abs(drawn(5, 12))),
    "loop": (graphs.looped, drawn(3, 10)),
}
METHODS = ("svd", "tucker2", "spatial_svd", "channel_svd")


def compressed(model: Any, x: np.ndarray, **how: Any) -> rf.Compressed:
    small = rf.compress(model, rf.Ranks(2), inputs=x, include="*", **how)
    assert small.plan.replaced
    return small


def tensor(model: Any, name: str) -> Any:
    return next(t for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GRAPHS)
def test_what_chains_compute_is_computed_by_the_nodes_of_the_original(
    name: str, method: str
) -> None:
    make, x = GRAPHS[name]
    model = make()
    small = rf.compress(model, rf.Ranks(2), inputs=x, include="*", methods=(method, "svd"))
    before = small.model.SerializeToString(deterministic=True)
    dense = small.expanded(make())
    graphs.near(graphs.run(dense, x=x), graphs.run(small.model, x=x), 1e-4)
    assert [n.name for n in dense.graph.node] == [n.name for n in model.graph.node]
    shapes = [(t.name, tuple(t.dims)) for t in model.graph.initializer]
    assert [(t.name, tuple(t.dims)) for t in dense.graph.initializer] == shapes
    assert small.model.SerializeToString(deterministic=True) == before
    again = rf.compress(dense, rf.Ranks(2), inputs=x, include="*", methods=(method, "svd"))
    # Of rank 2 already: nothing is lost.
    graphs.near(graphs.run(again.model, x=x), graphs.run(small.model, x=x), 1e-3)


def test_an_add_that_was_no_bias_of_the_layer_stays() -> None:
    nodes = [
        node("Gemm", "x w1", "h", "first", transB=1),
        node("Add", "h c", "a", "shift"),
        node("Relu", "a", "r"),
        node("MatMul", "r w2", "y", "second"),
    ]
    tensors = {"w1": drawn(20, 12), "c": drawn(20), "w2": drawn(20, 7)}
    model = graphs.model(nodes, tensors, {"x": ["n", 12]}, {"y": ["n", 7]})
    x = drawn(5, 12)
    small = compressed(model, x)
    dense = small.expanded(model)
    graphs.near(graphs.run(dense, x=x), graphs.run(small.model, x=x))
    assert [n.name for n in dense.graph.node] == ["first", "shift", "", "second"]
    assert np.array_equal(numpy_helper.to_array(tensor(dense, "c")), tensors["c"])


@pytest.mark.parametrize("shape", [(1,), (1, 21), (21,)])
def test_a_bias_that_is_spread_over_the_outputs_is_put_back(shape: tuple[int, ...]) -> None:
    tensors = {"w": drawn(24, 22), "v": drawn(21, 22), "b": drawn(*shape)}
    nodes = [node("MatMul", "x w", "h", "first"), node("Gemm", "h v b", "y", "second", transB=1)]
    x = drawn(5, 24)
    model = graphs.model(nodes, tensors, {"x": ["n", 24]}, {"y": ["n", 21]})
    small = compressed(model, x)
    dense = small.expanded(model)
    graphs.near(graphs.run(dense, x=x), graphs.run(small.model, x=x), 1e-4)


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "Transpose"])
def test_a_layer_that_was_refitted_and_stays_is_written_back(kind: str) -> None:
    stays = {
        "Conv": [node("Conv", "r v", "y", "second")],
        "Gemm": [node("Gemm", "r v", "y", "second", alpha=0.5, transB=1)],
        "Transpose": [
            node("Transpose", "v", "t", perm=[1, 0]),
            node("MatMul", "r t", "y", "second"),
        ],
    }
    axes = (1, 1) if kind == "Conv" else ()
    tensors = {"w": drawn(24, 17, *axes), "v": drawn(19, 24, *axes)}
    first = "Conv" if kind == "Conv" else "Gemm"
    if kind != "Conv":
        tensors["w"] = tensors["w"].T
    nodes = [node(first, "x w", "h", "first"), node("Relu", "h", "r"), *stays[kind]]
    sizes = [5, 7] if kind == "Conv" else []
    model = graphs.model(nodes, tensors, {"x": ["n", 17, *sizes]}, {"y": ["n", 19, *sizes]})
    batches = [drawn(64, 17, *sizes, seed=seed) for seed in range(6)]
    small = rf.compress(
        model, rf.Ranks({"first": 3}), inputs=batches[0], calibration=batches, include="*"
    )
    assert [layer.path for layer in small.plan.replaced] == ["first"]
    assert small.plan["second"].refit
    dense = small.expanded(model)
    x = batches[1]
    graphs.near(graphs.run(dense, x=x), graphs.run(small.model, x=x), 1e-4)
    assert [n.name for n in dense.graph.node if n.name] == ["first", "second"]


def test_a_transposed_weight_and_a_shared_layer_are_put_back() -> None:
    nodes = [
        node("Transpose", "w", "wt", "turn", perm=[1, 0]),
        node("MatMul", "x wt", "h", "first"),
        node("Tanh", "h", "t"),
        node("MatMul", "t wt", "y", "second"),
    ]
    model = graphs.model(nodes, {"w": drawn(13, 13, seed=2)}, {"x": ["n", 13]}, {"y": ["n", 13]})
    x = drawn(5, 13)
    small = compressed(model, x)
    dense = small.expanded(model)
    graphs.near(graphs.run(dense, x=x), graphs.run(small.model, x=x), 1e-4)
    # The weight is stored as the nodes read it.
    assert [n.name for n in dense.graph.node] == ["first", "", "second"]
    assert [t.name for t in dense.graph.initializer] == ["w"]


def test_numbers_that_were_changed_since_are_kept() -> None:
    model, x = graphs.perceptron(), drawn(5, 12)
    small = rf.compress(model, rf.Ranks(2), inputs=x, include="first")
    for name in ("b1", "w2", "w1.0"):
        stored = tensor(small.model, name)
        stored.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(stored), name))
    dense = small.expanded(model)
    graphs.near(graphs.run(dense, x=x), graphs.run(small.model, x=x))


def altered(what: str) -> tuple[Any, rf.Compressed]:
    """The graph of a perceptron, and its compressed form with something else changed."""
    model = graphs.perceptron()
    small = compressed(model, drawn(5, 12))
    names = [n.name for n in small.model.graph.node]
    second = small.model.graph.node[names.index("first.1")]
    if what == "activation":
        at, value = names.index("first.1"), second.input[0]
        small.model.graph.node.insert(at, node("Relu", value, "active"))
        second.input[0] = "active"
    elif what == "reader":
        small.model.graph.node.append(node("Relu", second.input[0], "spare"))
    elif what == "function":
        small.model.graph.node[names.index("")].op_type = "Sigmoid"
    elif what == "end":
        small.model.graph.node.append(node("Relu", "y", "end"))
    else:
        stored = tensor(small.model, "w2.0")
        stored.CopyFrom(numpy_helper.from_array(drawn(19, 2), "w2.0"))
    return model, small


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("activation", "layer 'first'.*'active' comes from no stage of a chain"),
        ("reader", "layer 'first'.*is read elsewhere, too"),
        ("function", "differ in more than chains: 'r' is not the same"),
        ("end", "differ in more than chains: 'end' is only in the compressed graph"),
        ("size", "layer 'second'"),
    ],
)
def test_what_is_no_chain_is_refused(what: str, message: str) -> None:
    model, small = altered(what)
    with pytest.raises(rf.RankfoldError, match=f"cannot be expanded: .*{message}"):
        small.expanded(model)


def test_another_original_is_refused() -> None:
    model, small = graphs.perceptron(), compressed(graphs.perceptron(), drawn(5, 12))
    model.graph.node[1].op_type = "Tanh"
    with pytest.raises(rf.RankfoldError, match="'r' is not the same"):
        small.expanded(model)
