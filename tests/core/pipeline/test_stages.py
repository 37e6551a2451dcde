from __future__ import annotations

from pathlib import Path

import jax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import rankfold as rf
from rankfold import RankfoldError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"up": nn.Linear(12, 40), "down": nn.Linear(40, 13)})


NAMES = ["up.0", "up.1", "down.0", "down.1"]


def test_the_result_its_model_and_a_loaded_one_have_the_same_stages(tmp_path: Path) -> None:
    small = rf.compress(network(), rf.Ranks(3))
    small.save(tmp_path / "small")
    loaded = rf.load(network(), tmp_path / "small")
    assert rf.stages(small) == rf.stages(small.model) == rf.stages(loaded) == NAMES
    assert all(isinstance(loaded.get_submodule(name), nn.Linear) for name in NAMES)


def test_layers_are_chosen_by_patterns() -> None:
    small = rf.compress(network(), rf.Ranks(3))
    assert rf.stages(small, include="d*") == rf.stages(small, exclude="up") == NAMES[2:]
    with pytest.raises(RankfoldError, match=r"include: pattern 'q' matches no layer.*up, down"):
        rf.stages(small, include="q")


def test_a_model_without_chains_is_named() -> None:
    with pytest.raises(RankfoldError, match="no compressed layer"):
        rf.stages(network())


def test_nnx_models_have_stages_by_their_paths() -> None:
    model = nnx.Sequential(nnx.Linear(12, 40, rngs=nnx.Rngs(0)), nnx.relu)
    small = rf.compress(model, rf.Ranks(3))
    assert rf.stages(small) == ["layers.0.layers.0", "layers.0.layers.1"]
    few = rf.compress(model, rf.Ranks(3), methods=("svd_id",))
    assert rf.stages(few) == ["layers.0.layers.0"]


def test_an_adapter_that_names_none_is_named() -> None:
    module = linen.Dense(40)
    x = jax.numpy.ones((2, 12))
    bound = module.bind(module.init(jax.random.key(0), x))
    with pytest.raises(RankfoldError, match="LinenAdapter does not name"):
        rf.stages(bound)
