"""Tensors are made of others as transformers makes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_transformers import tiny

from rankfold.checkpoints.reader import Checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "hrm_text"])
def test_what_is_made_is_what_the_model_had(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny(kind).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    stored = Checkpoint(tmp_path)
    checkpoint = Checkpoint(tmp_path, as_loaded=True)
    state = model.state_dict()
    made = sorted(checkpoint.owner.keys() - stored.owner.keys())
    assert made
    for name in made:
        assert checkpoint.entry(name).shape == tuple(state[name].shape)
        assert np.array_equal(checkpoint.array(name), state[name].float().numpy())
        size = state[name].numel() * state[name].element_size()
        assert [len(piece) for piece in checkpoint.pieces(name)] == [size]
    # Every tensor of the model is there once, and none that it is made of.
    assert sum(checkpoint.entry(name).size for name in checkpoint.owner) == sum(
        stored.entry(name).size for name in stored.owner
    )


def test_the_names_of_files_stay_where_nothing_is_made_of_others(tmp_path: Path) -> None:
    tiny("vit").save_pretrained(tmp_path)
    assert Checkpoint(tmp_path, as_loaded=True).owner == Checkpoint(tmp_path).owner
