"""`Compressed.save` of a model of transformers writes a folder for `from_pretrained`."""

from pathlib import Path

import torch
import transformers as tf
from tests.tiny_transformers import tiny

import rankfold as rf


def test_the_folder_is_opened_and_loaded_and_written_again(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "tokenizer.json").write_text("{}")
    (tmp_path / "whole" / "README.md").write_text("of the original")
    tiny("mixtral").save_pretrained(tmp_path / "whole")
    model = tf.MixtralForCausalLM.from_pretrained(tmp_path / "whole")
    small = rf.compress(model, rf.Ratio(0.4))
    for _ in range(2):
        small.save(tmp_path / "small")
    names = {file.name for file in (tmp_path / "small").iterdir()}
    assert names >= {"config.json", "model.safetensors", "plan.json", "tokenizer.json"}
    assert "README.md" not in names
    state = small.model.state_dict()
    for back in (
        tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small"),
        rf.load(tiny("mixtral", seed=1), tmp_path / "small"),
    ):
        assert back.state_dict().keys() == state.keys()
        assert all(torch.equal(back.state_dict()[name], state[name]) for name in state)
