"""A checkpoint of transformers from the command line to other processes and back, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from tests.benchmarks.transformers_sweep import WAYS, row
from tests.tiny_transformers import ARCHITECTURES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import rankfold as rf

IDS = torch.arange(3, 14)[None]
WORDS = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(50))]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small Llama in several files, with a tokenizer and a generation config."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=53,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = tf.LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 1.25
    folder = tmp_path / "whole"
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, "<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)
    return folder


def run(*words: object, home: Path | None = None) -> str:
    """Run Python on some words, offline, with a cache in a folder; return what it prints."""
    cache = {} if home is None else {"HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **cache},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compressed(checkpoint: Path) -> Path:
    small = checkpoint.parent / "small"
    rf.compress_checkpoint(checkpoint, small, rf.Ratio(0.4))
    return small


REFUSED = """
import sys
from transformers import AutoModelForCausalLM

for folder in sys.argv[1:4]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        print(" ".join(str(error).split()))
del sys.argv[1:4]
"""
OPENED = """
import json, sys
import rankfold_transformers
import torch
from transformers import AutoModelForCausalLM

ids = torch.arange(3, 14)[None]
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    generated = model.generate(ids, max_new_tokens=5, do_sample=False).tolist()
    logits = model(ids).logits.view(torch.int32).tolist()
    model.save_pretrained(f"{folder}-again")
    print(json.dumps([generated, logits]))
"""


def test_what_the_command_line_writes_is_opened_and_saved_in_another_process(
    checkpoint: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    run("-m", "rankfold.cli", "compress", checkpoint, "-o", small, "--policy", "ratio:0.4")
    files = {file.name for file in small.iterdir()}
    copied = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    assert files >= {"config.json", "model.safetensors.index.json", *copied}
    for name in copied:
        assert (small / name).read_bytes() == (checkpoint / name).read_bytes()
    model = rf.compress(tf.LlamaForCausalLM.from_pretrained(checkpoint), rf.Ratio(0.4))
    live, saved, again = (tmp_path / name for name in ("live", "saved", "small-again"))
    model.save(live)
    model.model.save_pretrained(saved)
    # Each process pays for the import of transformers: this one first goes without rankfold.
    *errors, first, second = run(
        "-c", REFUSED + OPENED, small, live, saved, small, again
    ).splitlines()
    message = "compressed by rankfold; install rankfold and import rank"
    assert [message in error for error in errors] == [True] * 3
    assert json.loads(first) == json.loads(second)
    tensors = [
        load_file(folder / "model.safetensors")
        for folder in (again, tmp_path / "small-again-again")
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[1][name], tensor) for name, tensor in tensors[0].items())
    assert "model.layers.0.mlp.up_proj.1.weight" in tensors[0]
    loaded = rf.load(tf.AutoModelForCausalLM.from_pretrained(checkpoint), small)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors[0].items())


def test_a_pipeline_takes_the_folder(checkpoint: Path) -> None:
    generate = tf.pipeline("text-generation", model=str(compressed(checkpoint)))
    [answer] = generate("w3 w4 w5", max_new_tokens=4, do_sample=False)
    assert answer["generated_text"].startswith("w3 w4 w5")
    assert generate.model.generation_config.repetition_penalty == 1.25


def test_a_model_of_a_cache_is_compressed_with_its_tokenizer(
    checkpoint: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "home" / "hub" / "models--someone--model"
    snapshot = repository / "snapshots" / "0123"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        file.rename(repository / "blobs" / f"{number:04}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:04}")
    small = compressed(snapshot)
    assert (small / "tokenizer.json").is_file()
    assert not (small / "tokenizer.json").is_symlink()
    run("-c", CACHED + OPENED, tmp_path / "saved", small, home=tmp_path / "home")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


CACHED = """
import sys
from transformers import AutoModelForCausalLM

import rankfold as rf

model = AutoModelForCausalLM.from_pretrained("someone/model")
rf.compress(model, rf.Ratio(0.4)).save(sys.argv[1])
"""


class Hub:
    """Stands in for the Hub: keeps what is uploaded."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repository = ""

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.repository = repo_id
        return type("Repository", (), {"repo_id": repo_id})()

    def create_commit(self, repo_id: str, operations: Any, **options: Any) -> None:
        for operation in operations:
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    def create_branch(self, *arguments: Any, **options: Any) -> None:
        raise AssertionError("no branch was asked for")


def test_what_is_pushed_to_the_hub_is_the_folder_and_a_card(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_utils
    from transformers.utils import hub

    stand_in = Hub()
    for module in (modeling_utils, hub):
        monkeypatch.setattr(module, "hf_api", lambda: stand_in)
    monkeypatch.setattr(
        hub.ModelCard, "load", lambda *a, **k: (_ for _ in ()).throw(hub.EntryNotFoundError("no"))
    )
    small = rf.compress(tf.LlamaForCausalLM.from_pretrained(checkpoint), rf.Ratio(0.4)).model
    small.push_to_hub("someone/small")
    assert stand_in.repository == "someone/small"
    assert stand_in.files.keys() >= {"config.json", "model.safetensors", "README.md"}
    assert b"rankfold" in stand_in.files["README.md"]
    copy = tmp_path / "downloaded"
    copy.mkdir()
    for name, content in stand_in.files.items():
        (copy / name).write_bytes(content)
    back = tf.AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        assert torch.equal(back(IDS).logits, small.eval()(IDS).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about configurations that are tiny
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_architecture_is_saved_and_opened(kind: str, way: str, tmp_path: Path) -> None:
    assert row(kind, way, tmp_path).startswith("ok")
