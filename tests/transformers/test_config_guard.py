"""config.json of a compressed model cannot be opened without rankfold; no other one changes."""

import json
from pathlib import Path

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


def test_it_is_exchanged_once() -> None:
    method = tf.PretrainedConfig.to_diff_dict
    guard()
    assert tf.PretrainedConfig.to_diff_dict is method
