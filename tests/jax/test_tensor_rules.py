"""Tensors of a checkpoint that are weights of Flax's layers, by their names and shapes."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.adapters.tensor_rules import LayerTensor
from rankfold.errors import RankfoldError
from rankfold.ops import Conv, Embedding, Linear
from rankfold_jax.tensor_rules import FLAX_TENSORS

NNX, LINEN = FLAX_TENSORS


@pytest.mark.parametrize(
    ("name", "shape", "layer"),
    [
        ("a.fc.kernel", (5, 7), LayerTensor("a.fc", "a.fc.bias")),
        ("conv.kernel", (3, 5, 7), LayerTensor("conv", "conv.bias")),
        ("a.kernel", (3, 3, 5, 7), LayerTensor("a", "a.bias")),
        ("embed.embedding", (11, 4), LayerTensor("embed")),
        ("embed.embedding", (2, 11, 4), None),
        ("fc.bias", (5, 7), None),
        ("scale.kernel", (7,), None),
    ],
)
def test_layers_are_known_by_the_name_of_their_array(
    name: str, shape: tuple[int, ...], layer: LayerTensor | None
) -> None:
    assert NNX.recognise(name, shape, {}) == layer


def test_names_of_linen_begin_with_those_of_parameters() -> None:
    assert LINEN.recognise("fc.kernel", (5, 7), {}) is None
    layer = LINEN.recognise("params.fc.kernel", (5, 7), {})
    assert layer == LayerTensor("fc", "params.fc.bias")
    assert LINEN.recognise("params.kernel", (5, 7), {}) == LayerTensor("", "params.bias")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("layers.kernel", (4, 5, 7), "a stack of layers"),
        ("heads.kernel", (5, 2, 7, 3), "a stack of layers"),
        ("ConvTranspose_0.kernel", (3, 5, 7), "a transposed convolution"),
        ("conv.kernel", (3, 3, 1, 7), "depthwise"),
    ],
)
def test_what_neither_name_nor_shape_makes_sure_is_refused(
    name: str, shape: tuple[int, ...], reason: str
) -> None:
    layer = NNX.recognise(name, shape, {})
    assert layer is not None
    assert reason in layer.refusal


def test_outputs_come_first_in_an_op() -> None:
    rng = np.random.default_rng(0)
    matrix, kernel, bias = (rng.standard_normal(s) for s in ((5, 7), (3, 2, 5, 7), (7,)))
    linear = NNX.op("a.kernel", matrix, bias)
    assert isinstance(linear, Linear)
    np.testing.assert_array_equal(linear.weight, matrix.T)
    conv = NNX.op("a.kernel", kernel, bias)
    assert isinstance(conv, Conv)
    np.testing.assert_array_equal(conv.weight, kernel.transpose(3, 2, 0, 1))
    assert isinstance(NNX.op("a.embedding", matrix, None), Embedding)
    with pytest.raises(RankfoldError, match="other axes than those of one layer"):
        NNX.op("a.kernel", matrix, bias[:5])


@pytest.mark.parametrize(("rule", "stage"), [(NNX, "layers."), (LINEN, "lr")])
def test_stages_are_named_as_a_loaded_model_has_them(rule: type, stage: str) -> None:
    table, matrix = np.ones((11, 2)), np.arange(8.0).reshape(4, 2)
    chain = (Embedding(table), Linear(matrix, np.zeros(4)))
    tensors = rule.stages("a.embedding", chain)  # type: ignore[attr-defined]
    assert list(tensors) == [f"a.{stage}0.embedding", f"a.{stage}1.kernel", f"a.{stage}1.bias"]
    np.testing.assert_array_equal(tensors[f"a.{stage}1.kernel"], matrix.T)
