"""Attributes of convolutions and layouts of weights, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

import rankfold as rf
from rankfold.ops.reference import forward
from rankfold_onnx.adapter import OnnxAdapter

SIZES = (13, 17, 11)
CONVOLUTIONS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "no attributes": ("Conv", (9, 6, 3, 5), {}),
    "1-d": ("Conv", (9, 6, 5), {"pads": [3, 1], "strides": [2], "dilations": [2]}),
    "3-d": ("Conv", (5, 4, 3, 2, 4), {"pads": [1, 0, 2, 0, 1, 1], "strides": [1, 2, 1]}),
    "grouped": ("Conv", (15, 4, 3, 5), {"group": 3, "pads": [1, 2, 0, 1]}),
    "same upper": ("Conv", (9, 6, 4, 5), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "same lower": ("Conv", (9, 6, 4, 5), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": ("Conv", (9, 6, 4, 5), {"auto_pad": "VALID"}),
    "transposed": (
        "ConvTranspose",
        (6, 9, 4, 3),
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]},
    ),
    "transposed, grouped": ("ConvTranspose", (6, 5, 4, 3), {"group": 2, "strides": [2, 2]}),
    "transposed, 1-d": ("ConvTranspose", (6, 9, 4), {"dilations": [2]}),
    "transposed, 3-d": ("ConvTranspose", (6, 4, 3, 2, 2), {"strides": [2, 1, 2]}),
    "transposed, same upper": (
        "ConvTranspose",
        (6, 9, 5, 4),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    "transposed, same lower": (
        "ConvTranspose",
        (6, 9, 5, 4),
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_read_and_replaced_as_onnxruntime_computes_it(name: str) -> None:
    op, shape, attributes = CONVOLUTIONS[name]
    groups, transposed = attributes.get("group", 1), op == "ConvTranspose"
    into = shape[0] if transposed else shape[1] * groups
    out = shape[1] * groups if transposed else shape[0]
    axes = len(shape) - 2
    model = graphs.model(
        [node(op, "x w b", "y", "layer", **attributes)],
        {"w": drawn(*shape), "b": drawn(out)},
        {"x": [2, into, *SIZES[:axes]]},
        {"y": [None] * (axes + 2)},
    )
    x = drawn(2, into, *SIZES[:axes], seed=1) * 3
    expected = graphs.run(model, x=x)
    read = OnnxAdapter().read(model, "layer")
    graphs.near(forward(read, x), expected)
    for method in ("tucker2", "channel_svd"):
        small = rf.compress(model, rf.Ranks("full"), inputs=x, methods=method, include="*")
        assert small.plan["layer"].method == method, small.plan["layer"].reason
        graphs.near(graphs.run(small.model, x=x), expected)


def test_a_padding_that_follows_from_the_shape_of_the_output_is_refused() -> None:
    model = graphs.model(
        [node("ConvTranspose", "x w", "y", output_shape=[26])],
        {"w": drawn(6, 9, 4)},
        {"x": [2, 6, 13]},
        {"y": [None] * 3},
    )
    assert "output_shape" in rf.plan(model, rf.Ranks(2)).layers[0].reason


def test_numbers_of_the_layout_are_those_of_the_stages() -> None:
    weight = np.arange(2 * 6 * 3, dtype=np.float32).reshape(6, 2, 3)
    model = graphs.model(
        [node("ConvTranspose", "x w", "y", "layer", group=3)],
        {"w": weight},
        {"x": [1, 6, 4]},
        {"y": [None] * 3},
    )
    op = OnnxAdapter().read(model, "layer")
    assert op.weight.shape == (6, 2, 3)
    # Output 1 of group 2 from input 0 of that group: ONNX stores the inputs first.
    assert (op.weight[5, 0] == weight[4, 1]).all()
