"""Geometry of a stock convolution in every form that PyTorch takes it in."""

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf

SET = {
    "stride": (nn.Conv2d, {"stride": 1}),
    "list": (nn.Conv2d, {"stride": [1, 2]}),
    "one of a tuple": (nn.Conv2d, {"padding": (2,)}),
    "padding": (nn.Conv2d, {"padding": 2}),
    "string": (nn.Conv2d, {"padding": "valid"}),
    "dilation": (nn.Conv2d, {"dilation": np.int64(2)}),
    "array integer": (nn.Conv2d, {"stride": np.int64(1), "groups": np.int64(1)}),
    "mode": (nn.Conv2d, {"padding_mode": "circular"}),
    "padding of a mode": (nn.Conv2d, {"padding_mode": "reflect", "padding": (0, 0)}),
    "output padding": (nn.ConvTranspose2d, {"output_padding": 1}),
    "transposed stride": (nn.ConvTranspose2d, {"stride": 3, "dilation": [1, 2]}),
}


@pytest.mark.parametrize("case", SET)
def test_geometry_set_afterwards_is_read_as_the_layer_runs_with_it(case: str) -> None:
    kind, values = SET[case]
    layer = kind(5, 7, 3, stride=2, padding=1)
    for name, value in values.items():
        setattr(layer, name, value)
    x = torch.randn(2, 5, 11, 13)
    small = rf.compress(layer, rf.Ranks("full"), inputs=x, methods=["tucker2"])
    assert small.plan[""].method == "tucker2"
    torch.testing.assert_close(small.model(x), layer(x), rtol=1e-4, atol=1e-4)


BROKEN = {
    "zero": (nn.Conv2d, "stride", 0),
    "float": (nn.Conv2d, "stride", 1.0),
    "bool": (nn.Conv2d, "stride", True),
    "none": (nn.Conv2d, "dilation", None),
    "three": (nn.Conv2d, "dilation", (1, 1, 1)),
    "pairs": (nn.Conv2d, "padding", ((1, 1), (1, 1))),
    "same with a stride": (nn.Conv2d, "padding", "same"),
    "word": (nn.Conv2d, "padding", "same_lower"),
    "mode": (nn.Conv2d, "padding_mode", "mirror"),
    "groups": (nn.Conv2d, "groups", 3),
    "transposed int": (nn.ConvTranspose2d, "padding", 1),
    "transposed mode": (nn.ConvTranspose2d, "padding_mode", "circular"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_geometry_that_no_layer_runs_with_is_a_reason_of_that_layer_alone(case: str) -> None:
    kind, name, value = BROKEN[case]
    model = nn.Sequential(kind(5, 7, 3, stride=2, padding=1), nn.Conv2d(7, 9, 3))
    setattr(model[0], name, value)
    plan = rf.plan(model, rf.Ranks(2))
    assert name in plan["0"].reason
    assert plan["1"].method is not None
