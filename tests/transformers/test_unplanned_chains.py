"""No model gets layers at random because its configuration does not tell of their chains."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tests.tiny_transformers import tiny
from torch import nn

import rankfold as rf
from rankfold_transformers.unplanned_chains import watch

KINDS = ["llama", "gpt_neox", "mixtral", "vit"]
ERROR = "chains of rankfold in the place of .*leave config= out"


def whole(kind: str) -> Any:
    torch.manual_seed(0)
    return tiny(kind)


def compressed(model: Any, **how: Any) -> Any:
    return rf.compress(model, rf.Ratio(0.4), **how).model


@pytest.mark.parametrize("by_file", [False, True], ids=["model", "file"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_without_the_plans_is_refused(
    kind: str, tmp_path: Path, *, by_file: bool
) -> None:
    model = whole(kind)
    if by_file:
        model.save_pretrained(tmp_path / "whole")
        rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4))
    else:
        compressed(model).save_pretrained(tmp_path / "small")
    with pytest.raises(rf.RankfoldError, match=ERROR):
        type(model).from_pretrained(tmp_path / "small", config=model.config)
    (tmp_path / "small" / "config.json").unlink()
    model.config.save_pretrained(tmp_path / "small")
    with pytest.raises(rf.RankfoldError, match=ERROR):
        type(model).from_pretrained(tmp_path / "small")


def test_the_automatic_classes_refuse_it(tmp_path: Path) -> None:
    model = whole("llama")
    compressed(model).save_pretrained(tmp_path)
    for known in (tf.AutoModelForCausalLM, tf.AutoModel):
        with pytest.raises(rf.RankfoldError, match=re.escape("layers.0.mlp.down_proj")):
            known.from_pretrained(tmp_path, config=copy.deepcopy(model.config))


def test_a_state_is_taken_with_the_plans_alone(tmp_path: Path) -> None:
    model = whole("llama")
    small = compressed(model)
    small.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    with pytest.raises(rf.RankfoldError, match=ERROR):
        type(model).from_pretrained(None, config=model.config, state_dict=state)
    config = tf.AutoConfig.from_pretrained(tmp_path)
    again = type(model).from_pretrained(None, config=config, state_dict=state)
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_a_compressed_head_is_refused_too(tmp_path: Path) -> None:
    model = whole("llama")
    compressed(model, include="lm_head").save_pretrained(tmp_path)
    with pytest.raises(rf.RankfoldError, match="in the place of lm_head"):
        type(model).from_pretrained(tmp_path, config=model.config)


def test_another_head_is_transformers_own_affair(tmp_path: Path) -> None:
    model = whole("llama")
    model.save_pretrained(tmp_path)
    features = model.config.hidden_size
    model.lm_head = nn.Sequential(nn.Linear(features, features), nn.Linear(features, 7))
    state = model.state_dict()
    again, report = type(model).from_pretrained(
        None, config=model.config, state_dict=state, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"lm_head.weight"}
    assert isinstance(again.lm_head, nn.Linear)


def test_a_sequence_of_the_model_s_own_is_transformers_own_affair() -> None:
    model = whole("llama")
    features = model.config.hidden_size
    model.model.norm = nn.Sequential(nn.Linear(features, features), nn.LayerNorm(features))
    again, report = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"model.norm.weight"}
    assert not isinstance(again.model.norm, nn.Sequential)


def test_a_model_comes_with_a_report_only_when_it_is_asked_for(tmp_path: Path) -> None:
    model = whole("llama")
    model.save_pretrained(tmp_path)
    assert type(type(model).from_pretrained(tmp_path)) is type(model)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model)
    assert not report["missing_keys"]


def test_it_is_exchanged_once() -> None:
    method = tf.PreTrainedModel.from_pretrained.__func__
    watch()
    assert tf.PreTrainedModel.from_pretrained.__func__ is method
