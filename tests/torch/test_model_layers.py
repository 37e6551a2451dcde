from __future__ import annotations

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold_torch.model_layers import layers_of, modules_of, paths_by_module, stages_of


def test_layers_have_a_matrix() -> None:
    model = nn.ModuleDict(
        {"linear": nn.Linear(3, 5), "norm": nn.LayerNorm(7), "lazy": nn.LazyLinear(2)}
    )
    model.register_parameter("table", nn.Parameter(torch.ones(4, 6)))
    assert list(layers_of(model)) == list(modules_of(model)) == ["", "linear", "lazy"]


def test_a_shared_module_has_two_paths() -> None:
    layer = nn.Linear(3, 5)
    assert paths_by_module(nn.Sequential(layer, layer))[id(layer)] == ["0", "1"]


@pytest.mark.parametrize(
    ("layer", "methods", "names"),
    [
        (nn.Linear(24, 30), ("svd",), ["0", "1"]),
        (nn.Linear(24, 30), ("svd_id",), ["0"]),  # a tall layer's last stage is interpolative
        (nn.Conv2d(12, 15, 3, padding="same"), ("tucker2",), ["0", "1", "2"]),
        (nn.Conv2d(12, 15, 3, padding="same"), ("tucker2_id",), ["1"]),
        (nn.Embedding(50, 18), ("svd",), ["0", "1"]),
    ],
    ids=["svd", "svd_id", "tucker2", "tucker2_id", "embedding"],
)
def test_stages_are_stock_layers(
    layer: nn.Module, methods: tuple[str, ...], names: list[str]
) -> None:
    small = rf.compress(nn.ModuleDict({"up": layer}), rf.Ranks(4), methods=methods)
    assert stages_of(small.model) == {"up": [f"up.{name}" for name in names]}


def test_a_model_that_is_one_layer_has_stages() -> None:
    small = rf.compress(nn.Linear(24, 30), rf.Ranks(4))
    assert stages_of(small.model) == {"": ["0", "1"]}
