"""config.json of a compressed model cannot be opened without rankfold; no other one changes."""

import json
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from tests.tiny_transformers import tiny

import rankfold as rf
from rankfold_transformers.config_guard import guard


def test_a_compressed_model_says_what_it_takes(tmp_path: Path) -> None:
    original = tiny("llama")
    before = original.config.to_diff_dict()
    small = rf.compress(original, rf.Ratio(0.4)).model
    small.save_pretrained(tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["transformers_weights"]
    assert "install rankfold" in entry
    assert original.config.to_diff_dict() == before
    assert "transformers_weights" not in before
    back = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(back.config, "transformers_weights")


def test_a_configuration_that_was_only_read_says_it_too(tmp_path: Path) -> None:
    rf.compress(tiny("llama"), rf.Ratio(0.4)).model.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    tf.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert after["transformers_weights"] == before["transformers_weights"]
    assert after["quantization_config"] == before["quantization_config"]


def test_it_is_exchanged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tf.PretrainedConfig.to_diff_dict
    guard()
    assert tf.PretrainedConfig.to_diff_dict is method
    around = wrapper(method)
    monkeypatch.setattr(tf.PretrainedConfig, "to_diff_dict", around)
    guard()
    assert tf.PretrainedConfig.to_diff_dict is around


def test_a_method_that_somebody_wrapped_before_is_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unguarded = tf.PretrainedConfig.to_diff_dict.__wrapped__
    monkeypatch.setattr(tf.PretrainedConfig, "to_diff_dict", wrapper(unguarded))
    config = rf.compress(tiny("llama"), rf.Ratio(0.4)).model.config
    assert "transformers_weights" not in config.to_diff_dict()
    guard()
    assert "transformers_weights" in config.to_diff_dict()


def wrapper(method: Any) -> Any:
    @wraps(method)
    def wrapped(self: Any) -> Any:
        return method(self)

    return wrapped
