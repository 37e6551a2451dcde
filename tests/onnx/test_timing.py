"""Times of layers and models by onnxruntime."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import numpy as np
from tests.onnx import graphs
from tests.onnx.graphs import drawn

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Linear
from rankfold_onnx.adapter import OnnxAdapter
from rankfold_onnx.layers import layers_of
from rankfold_onnx.stages import Stages, staged
from rankfold_onnx.timing import built, seconds


def test_times_are_measured() -> None:
    model, x = graphs.perceptron(), drawn(64, 12)
    adapter = OnnxAdapter()
    chain = (Linear(drawn(2, 12)), Linear(drawn(20, 2), drawn(20)))
    times = adapter.seconds(model, "first", [chain], [(64,)])
    assert len(times) == 2
    assert all(0 < seconds < 1 for seconds in times)
    small = rf.compress(model, rf.Ranks(2), inputs=x).model
    assert all(0 < seconds < 1 for seconds in adapter.model_seconds([model, small], x))


def test_stages_that_cannot_be_built_or_run_take_forever() -> None:
    model = graphs.perceptron()
    layer = layers_of(model)[1]["first"]
    good = staged(model, layer, (layer.op,))
    bad = staged(model, layer, (layer.op,))
    bad.nodes[0].op_type = "NoSuchOperator"
    times = seconds([good, None, bad], layer.op, np.dtype(np.float32), [(5,)])
    assert 0 < times[0] < 1
    assert times[1:] == (np.inf, np.inf)


def test_what_is_refused_is_nothing_to_time() -> None:
    def refuse() -> Stages:
        raise Refused("no such nodes")

    assert built(refuse) is None
    model = graphs.perceptron()
    layer = layers_of(model)[1]["first"]
    stages = built(lambda: staged(model, layer, (layer.op,)))
    assert stages is not None
    assert stages.is_refill
