"""Tensors of a checkpoint that are weights of PyTorch's layers, by their names and shapes."""

import numpy as np
import pytest

from rankfold.adapters.tensor_rules import LayerTensor
from rankfold.errors import RankfoldError
from rankfold.ops import Conv, Linear
from rankfold_torch.tensor_rules import TORCH_TENSORS


@pytest.mark.parametrize(
    ("name", "shape", "path"),
    [
        ("block.fc.weight", (7, 5), "block.fc"),
        ("conv.weight", (7, 5, 3), "conv"),
        ("conv.weight", (7, 5, 3, 2), "conv"),
        ("conv.weight", (7, 5, 3, 2, 4), "conv"),
    ],
)
def test_a_weight_has_its_bias_beside_it(name: str, shape: tuple[int, ...], path: str) -> None:
    assert TORCH_TENSORS.recognise(name, shape, {}) == LayerTensor(path, f"{path}.bias")


def test_a_model_that_is_one_layer_has_the_path_of_nothing() -> None:
    assert TORCH_TENSORS.recognise("weight", (7, 5), {}) == LayerTensor("", "bias")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("fc.bias", (7, 5)), ("norm.weight", (7,)), ("fc.weight_g", (7, 1)), ("x.weight", (2,) * 6)],
)
def test_other_tensors_are_not_known(name: str, shape: tuple[int, ...]) -> None:
    assert TORCH_TENSORS.recognise(name, shape, {}) is None


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.embed_tokens.weight", (29, 12), "a table"),
        ("wte.weight", (29, 12), "a table"),
        ("Upsample.0.weight", (5, 7, 3, 2), "transposed"),
        ("deconv1.weight", (5, 7, 3), "transposed"),
        ("conv.weight", (7, 1, 3, 3), "depthwise"),
    ],
)
def test_what_neither_name_nor_shape_makes_sure_is_refused(
    name: str, shape: tuple[int, ...], reason: str
) -> None:
    layer = TORCH_TENSORS.recognise(name, shape, {})
    assert layer is not None
    assert reason in layer.refusal


def test_axes_tell_the_op_and_a_bias_of_another_length_another_layout() -> None:
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(7)
    matrix, kernel = rng.standard_normal((7, 5)), rng.standard_normal((7, 5, 3))
    linear, conv = (TORCH_TENSORS.op("a.weight", weight, bias) for weight in (matrix, kernel))
    assert (type(linear), type(conv)) == (Linear, Conv)
    assert linear.weight is matrix
    assert conv.bias is bias
    with pytest.raises(RankfoldError, match=r"\(5,\) for a weight of \(7, 5\)"):
        TORCH_TENSORS.op("a.weight", matrix, bias[:5])


def test_stages_have_the_names_of_a_sequential() -> None:
    first, last = np.ones((2, 5)), np.ones((7, 2))
    stages = TORCH_TENSORS.stages("a.b.weight", (Linear(first), Linear(last, np.zeros(7))))
    assert list(stages) == ["a.b.0.weight", "a.b.1.weight", "a.b.1.bias"]
    assert list(TORCH_TENSORS.stages("weight", (Linear(first),))) == ["0.weight"]
