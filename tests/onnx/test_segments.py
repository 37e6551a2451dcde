"""A model run piece by piece gives what it gives as a whole."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

from rankfold_onnx.flat_graph import flattened
from rankfold_onnx.layers import layers_of
from rankfold_onnx.segments import Segments

MODELS = {
    "perceptron": (graphs.perceptron, (5, 12)),
    "convolutional": (graphs.convolutional, (2, 3, 12, 10)),
    "conditional": (graphs.conditional, (5, 12)),
    "looped": (graphs.looped, (5, 10)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_outputs_are_those_of_the_whole_and_nothing_else_is_kept(
    name: str, share: float
) -> None:
    make, shape = MODELS[name]
    model, x = make(), drawn(*shape)
    all_graphs, layers = layers_of(model)
    flat = flattened(all_graphs, layers, {"x": x})
    inside = [path for path in layers if "body" not in path or name == "convolutional"]
    paths = inside[: round(share * len(inside))]
    segments = Segments.of(flat, paths)
    assert [step.call.path for step in segments.steps] == [
        call.path for call in flat.calls if call.path in paths
    ]
    values = {"x": x}
    for step in segments.steps:
        for segment in (step.before, step.layer):
            segment.run(values)
            segment.release(values)
    segments.end.run(values)
    segments.end.release(values)
    assert set(values) == {"y"}
    graphs.near(values["y"], graphs.run(model, x=x))


def test_a_value_is_kept_for_its_last_reader() -> None:
    nodes = [
        node("MatMul", "x w", "a", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b v", "c", "c"),
        node("Add", "c a", "y"),
    ]
    model = graphs.model(
        nodes, {"w": drawn(6, 6), "v": drawn(6, 6, seed=1)}, {"x": [5, 6]}, {"y": [5, 6]}
    )
    all_graphs, layers = layers_of(model)
    segments = Segments.of(flattened(all_graphs, layers, None), layers)
    values = {"x": drawn(5, 6)}
    kept = []
    for step in segments.steps:
        for segment in (step.before, step.layer):
            segment.run(values)
            segment.release(values)
            kept.append(set(values))
    assert kept == [{"x"}, {"a"}, {"a", "b"}, {"a", "c"}]
    segments.end.run(values)
    assert np.isfinite(values["y"]).all()
