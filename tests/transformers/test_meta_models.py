"""A model without values says which layers of its checkpoint can be replaced."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_transformers import tiny

import rankfold as rf
from rankfold_transformers.meta_models import model_of


def saved(kind: str, folder: Path) -> dict[str, Any]:
    tiny(kind).save_pretrained(folder)
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return settings


def test_a_model_is_made_without_values(tmp_path: Path) -> None:
    settings = saved("falcon_h1", tmp_path)  # with an infinite number in its configuration
    model = model_of(settings)
    assert model is not None
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in tiny("falcon_h1").named_parameters()
    }


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["NoSuchModel"]},
        {"architectures": None},
        {"model_type": "no such type"},
        {"auto_map": {"AutoModel": "code.py"}},
        {"hidden_size": "many"},
    ],
)
def test_no_model_is_made_of_what_transformers_does_not_know(
    change: dict[str, Any], tmp_path: Path
) -> None:
    assert model_of({**saved("llama", tmp_path), **change}) is None


@pytest.mark.parametrize(
    ("kind", "layer", "reason"),
    [
        ("falcon_h1", "model.layers.1.mamba.out_proj", "its weight is read by FalconH1Mixer"),
        ("videomae", "encoder.layer.1.attention.attention.query", "not that of a bias"),
    ],
)
def test_layers_that_the_model_does_not_let_go_are_left_alone(
    kind: str, layer: str, reason: str, tmp_path: Path
) -> None:
    saved(kind, tmp_path / "whole")
    plan = rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4))
    assert reason in plan[layer].reason
    assert plan.replaced


def test_a_tensor_that_the_model_has_not_is_left_alone(tmp_path: Path) -> None:
    saved("llama", tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    extra = {"extra.proj.weight": torch.randn(17, 13)}
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    plan = rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ranks(3))
    assert plan["extra.proj"].reason == "no layer of LlamaForCausalLM"
