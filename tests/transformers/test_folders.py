"""Checkpoints of transformers are compressed with what is installed, and opened all the same."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.benchmarks.transformers_sweep import check_faithful, check_same
from tests.tiny_transformers import tiny

import rankfold as rf
from rankfold.checkpoints.reader import Checkpoint
from rankfold_transformers import folders


@pytest.mark.parametrize("kind", ["vit", "beit", "gpt_neox"])
def test_without_transformers_names_and_shapes_decide(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(kind)
    model.save_pretrained(tmp_path / "whole", max_shard_size="50KB")
    with monkeypatch.context() as absent:
        absent.setattr(folders, "_installed", lambda: False)
        rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4))
    back = type(model).from_pretrained(tmp_path / "small")
    check_faithful(model, back)
    loaded = rf.load(tiny(kind, seed=1), tmp_path / "small")
    check_same(back.state_dict(), loaded.state_dict(), "rankfold.load")


def test_workers_make_the_same_stacks(tmp_path: Path) -> None:
    tiny("mixtral").save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    with ThreadPoolExecutor(2) as executor:
        plan = rf.compress_checkpoint(
            tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4), executor=executor
        )
    assert plan == rf.compress_checkpoint(tmp_path / "whole", tmp_path / "other", rf.Ratio(0.4))
    for file in (tmp_path / "small").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def test_a_stack_survives_a_pickled_checkpoint(tmp_path: Path) -> None:
    model = tiny("mixtral")
    model.save_pretrained(tmp_path)
    checkpoint = pickle.loads(pickle.dumps(Checkpoint(tmp_path, as_loaded=True)))
    name = "model.layers.0.mlp.experts.down_proj"
    assert torch.equal(torch.from_numpy(checkpoint.array(name)), model.state_dict()[name])
