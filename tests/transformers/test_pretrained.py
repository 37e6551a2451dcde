"""Compressed models of transformers: saved by `save_pretrained`, opened by `from_pretrained`."""

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.plugins.registry import registry
from rankfold_transformers import folders

IDS = torch.arange(3, 14)[None]
NEEDS_ACCELERATE = pytest.mark.skipif(
    find_spec("accelerate") is None, reason="transformers needs accelerate for it"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
WORDS: dict[str, Any] = {"vocab_size": 53, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {"input_ids": IDS}


def llama(**options: Any) -> Any:
    config = tf.LlamaConfig(**SIZES, **WORDS, **options, num_key_value_heads=2)
    return tf.LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 17}
    return tf.GPT2LMHeadModel(tf.GPT2Config(**sizes, **WORDS)).eval()


def bert() -> Any:
    return tf.BertForSequenceClassification(tf.BertConfig(**SIZES, **WORDS)).eval()


def vit() -> Any:
    config = tf.ViTConfig(**SIZES, image_size=30, patch_size=6, num_labels=5)
    return tf.ViTForImageClassification(config).eval()


def t5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    config = tf.T5Config(**sizes, vocab_size=53, decoder_start_token_id=0)
    return tf.T5ForConditionalGeneration(config).eval()


def mixtral() -> Any:
    config = tf.MixtralConfig(**SIZES, **WORDS, num_local_experts=4, num_key_value_heads=2)
    return tf.MixtralForCausalLM(config).eval()


def gpt_neox() -> Any:
    """A model whose head has another name in its files."""
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES, **WORDS)).eval()


MODELS: dict[str, tuple[Callable[[], Any], dict[str, torch.Tensor]]] = {
    "llama": (llama, TEXT),
    "tied llama": (lambda: llama(tie_word_embeddings=True), TEXT),
    "gpt2": (gpt2, TEXT),
    "gpt_neox": (gpt_neox, TEXT),
    "bert": (bert, TEXT),
    "vit": (vit, {"pixel_values": torch.ones(1, 3, 30, 30)}),
    "t5": (t5, {**TEXT, "decoder_input_ids": torch.arange(5)[None]}),
    "mixtral": (mixtral, TEXT),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def logits(model: Any, inputs: Any = TEXT) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs).logits
    return found


def compressed(model: Any) -> rf.Compressed:
    return rf.compress(model, rf.Ratio(0.4), include="*")  # heads, too


def reopened(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def plans(model: Any) -> list[int]:
    """How many layers each plan in the configuration replaces."""
    return [len(plan["layers"]) for plan in model.config.quantization_config.plans]


@pytest.mark.parametrize("name", MODELS)
def test_a_compressed_model_is_opened_from_shards_and_saved_again(
    name: str, tmp_path: Path
) -> None:
    make, inputs = MODELS[name]
    small = compressed(make()).model
    small.save_pretrained(tmp_path / "small", max_shard_size="20KB")
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    back, report = type(small).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(back, inputs), logits(small, inputs))
    assert torch.equal(logits(reopened(back, tmp_path / "again"), inputs), logits(small, inputs))


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "eager"},
        {"dtype": torch.bfloat16},
        pytest.param({"device_map": "cpu"}, marks=NEEDS_ACCELERATE),
        pytest.param({"device_map": {"": "disk"}}, marks=NEEDS_ACCELERATE),
    ],
    ids=["attn_implementation", "dtype", "device_map", "disk"],
)
def test_the_options_of_from_pretrained_hold(options: dict[str, Any], tmp_path: Path) -> None:
    small = compressed(llama()).model
    small.save_pretrained(tmp_path / "small")
    back = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small", **options)
    assert {p.dtype for p in back.parameters()} == {options.get("dtype", torch.float32)}
    assert type(back.model.layers[0].mlp.up_proj[0]) is nn.Linear
    generated = back.generate(IDS, max_new_tokens=3, do_sample=False)
    if "dtype" not in options:
        assert torch.equal(generated, small.generate(IDS, max_new_tokens=3, do_sample=False))


@NEEDS_ACCELERATE
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_on_disk_is_compressed_and_saved(tied: bool, tmp_path: Path) -> None:
    original = llama(tie_word_embeddings=tied)
    original.save_pretrained(tmp_path / "whole")
    on_disk = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    small = rf.compress(on_disk, rf.Ratio(0.4), include="*", inputs=TEXT)
    plain = rf.compress(original, rf.Ratio(0.4), include="*", inputs=TEXT)
    assert [x.reason for x in small.plan.layers] == [x.reason for x in plain.plan.layers]
    assert torch.equal(logits(small.model), logits(plain.model))
    assert all(parameter.is_meta for parameter in small.model.parameters())
    small.save(tmp_path / "small")
    back = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(back), logits(plain.model))


@NEEDS_ACCELERATE
def test_ties_are_known_of_weights_that_were_written_to_disk(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.disk_offload(llama(tie_word_embeddings=True), tmp_path)
    plan = rf.plan(model, rf.Ratio(0.4), include="*", inputs=TEXT)
    assert plan["lm_head"].reason == "tied: its weight is also 'model.embed_tokens.weight'"
    assert plan["model.embed_tokens"].reason == "tied: its weight is also 'lm_head.weight'"


def test_the_configuration_of_the_original_stays_as_it_is() -> None:
    config = tf.LlamaConfig(**SIZES, **WORDS)
    shared, original = tf.LlamaForCausalLM(config), tf.LlamaForCausalLM(config)
    before = config.to_json_string()
    assert plans(compressed(original).model) == [16]
    rf.compress(shared, rf.Ratio(0.4), include="*", inplace=True)
    assert plans(shared) == [16]
    assert config.to_json_string() == original.config.to_json_string() == before


def test_interpolative_stages_are_opened(tmp_path: Path) -> None:
    small = rf.compress(llama(), rf.Ratio(0.4), methods=["svd_id"]).model
    back = reopened(small, tmp_path / "small")
    assert torch.equal(logits(back), logits(small))
    assert torch.equal(logits(reopened(back, tmp_path / "again")), logits(small))


def test_a_checkpoint_that_was_compressed_twice_is_opened(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "0", max_shard_size="20KB")
    for number, policy in enumerate((rf.Ratio(0.6), rf.Ranks(5))):
        rf.compress_checkpoint(tmp_path / f"{number}", tmp_path / f"{number + 1}", policy)
    back = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "2")
    first, second = plans(back)
    assert second > first > 0
    assert torch.equal(logits(reopened(back, tmp_path / "again")), logits(back))


def test_interpolative_stages_are_left_alone_in_a_second_compression(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "0")
    rf.compress_checkpoint(tmp_path / "0", tmp_path / "1", rf.Ratio(0.6), methods=["svd_id"])
    plan = rf.compress_checkpoint(tmp_path / "1", tmp_path / "2", rf.Ratio(0.5))
    assert plan.replaced
    assert any(layer.reason.startswith("interpolative already") for layer in plan.layers)
    back = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "2")
    assert plans(back)[1] == len(plan.replaced)
    once = rf.load(llama(), tmp_path / "1")
    assert torch.equal(logits(rf.load(once, tmp_path / "2")), logits(back))


def test_what_is_opened_is_an_ordinary_model(tmp_path: Path) -> None:
    back = reopened(compressed(llama()).model, tmp_path / "small")
    assert not getattr(back, "is_quantized", False)
    assert not hasattr(back, "hf_quantizer")
    back.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in back.parameters())
    assert back.half().dtype is torch.float16
    assert back.float().dtype is torch.float32


def test_a_model_that_is_compressed_twice_is_opened(tmp_path: Path) -> None:
    once = reopened(compressed(llama()).model, tmp_path / "once")
    twice = rf.compress(once, rf.Ranks(5)).model
    assert (plans(once), plans(twice)) == ([16], [16, 32])
    assert torch.equal(logits(reopened(twice, tmp_path / "twice")), logits(twice))


def test_an_expanded_model_is_no_compressed_one(tmp_path: Path) -> None:
    original = llama()
    small = compressed(original)
    whole = small.expanded(original)
    assert not hasattr(whole.config, "quantization_config")
    assert plans(small.model) == [16]
    assert torch.equal(logits(reopened(whole, tmp_path / "whole")), logits(whole))
    further = rf.compress(whole, rf.Ratio(0.3)).model
    assert torch.equal(logits(reopened(further, tmp_path / "less")), logits(further))


def test_what_load_and_apply_give_is_saved_for_from_pretrained(tmp_path: Path) -> None:
    original = llama()
    small = compressed(original)
    small.save(tmp_path / "out")
    loaded = rf.load(tf.LlamaForCausalLM(small.model.config), tmp_path / "out")
    applied = rf.apply(original, small.plan).model
    assert plans(loaded) == plans(applied) == [16]
    for number, model in enumerate((loaded, applied)):
        assert torch.equal(logits(reopened(model, tmp_path / f"{number}")), logits(small.model))


def test_a_model_of_transformers_within_another_is_opened(tmp_path: Path) -> None:
    small = compressed(nn.Sequential(bert())).model
    assert torch.equal(logits(reopened(small[0], tmp_path / "small")), logits(small[0]))


def test_base_and_other_heads_are_opened(tmp_path: Path) -> None:
    small = compressed(llama()).model
    small.save_pretrained(tmp_path / "small")
    small.model.save_pretrained(tmp_path / "base")
    state = small.model(IDS).last_hidden_state
    for back in (
        tf.AutoModel.from_pretrained(tmp_path / "small"),
        tf.AutoModel.from_pretrained(tmp_path / "base"),
        tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").model,
        tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base").model,
    ):
        assert torch.equal(back(IDS).last_hidden_state, state)


def test_base_and_other_heads_are_opened_from_files(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "whole")
    rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4), include="*")
    full = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(full.lm_head) is not nn.Linear
    state = full.model(IDS).last_hidden_state
    full.model.save_pretrained(tmp_path / "base")
    rf.compress_checkpoint(tmp_path / "base", tmp_path / "twice", rf.Ranks(3), include="*")
    for back in (
        tf.AutoModel.from_pretrained(tmp_path / "small"),
        tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").model,
        tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base").model,
    ):
        assert torch.equal(back(IDS).last_hidden_state, state)
    for kind in (tf.AutoModel, tf.AutoModelForCausalLM):
        back, report = kind.from_pretrained(tmp_path / "twice", output_loading_info=True)
        assert all(name.startswith("lm_head.") for name in report["missing_keys"])
        assert len(plans(back)) == 2


def siglip() -> Any:
    """A tower whose source reads a weight in a branch that its runs do not take."""
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4}
    images = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2}
    return tf.SiglipVisionModel(tf.SiglipVisionConfig(**sizes, **images))


def dac() -> Any:
    """A codec that fills convolutions itself once its files are read."""
    sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "downsampling_ratios": [2, 4]}
    codebooks = {"n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4}
    return tf.DacModel(tf.DacConfig(**sizes, **codebooks))


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (siglip, {"pixel_values": torch.randn(1, 3, 16, 16)}),
        (dac, {"input_values": torch.randn(1, 1, 400)}),
    ],
)
def test_what_a_run_showed_holds_for_from_pretrained(
    build: Any, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    small = rf.compress(build().eval(), rf.Energy(0.5), inputs=inputs).model.eval()
    with torch.no_grad():
        expected, actual = small(**inputs), reopened(small, tmp_path / "small").eval()(**inputs)
    assert torch.equal(expected[0], actual[0])


def test_a_head_that_the_files_lack_is_a_layer_again(tmp_path: Path) -> None:
    compressed(llama()).model.model.save_pretrained(tmp_path / "base")
    back = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert type(back.lm_head) is nn.Linear
    assert plans(back) == [15]
    assert torch.equal(logits(reopened(back, tmp_path / "whole")), logits(back))


def test_a_whole_model_under_the_configuration_of_a_compressed_one_is_refused(
    tmp_path: Path,
) -> None:
    whole = tf.LlamaForCausalLM(compressed(llama()).model.config)
    with pytest.raises(rf.RankfoldError, match=r"hold the whole weight of 'model.embed_tokens'"):
        reopened(whole, tmp_path / "whole")
    assert plans(rf.compress(whole, rf.Ranks(3), include="*up_proj").model) == [2]


def test_files_that_lack_weights_of_a_chain_are_refused(tmp_path: Path) -> None:
    small = compressed(llama()).model
    small.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(rf.RankfoldError, match=r"lack model.layers.0.mlp.up_proj.1.weight"):
        type(small).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9"),
        ({"plans": [{"layers": [{"path": 3}]}]}, "holds no plan"),
        ({"plans": [{"layers": [{"path": "no", "method": "svd", "ranks": [3]}]}]}, "'model.no'"),
        ({"plans": [{"layers": [{"path": "lm_head", "method": "svd", "ranks": [99]}]}]}, "rank 99"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small = compressed(llama()).model
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(rf.RankfoldError, match=message):
        type(small).from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mixtral", "vit"])
@pytest.mark.parametrize("by_file", [False, True], ids=["model", "file"])
def test_a_plan_that_lacks_a_layer_is_refused(name: str, by_file: bool, tmp_path: Path) -> None:
    model = MODELS[name][0]()
    if by_file:
        model.save_pretrained(tmp_path / "whole")
        rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4), include="*")
    else:
        compressed(model).model.save_pretrained(tmp_path / "small")
    file = tmp_path / "small" / "config.json"
    config = json.loads(file.read_text())
    (plan,) = config["quantization_config"]["plans"]
    layers = plan["layers"]
    for without in (0, len(layers) // 2, len(layers) - 1):
        plan["layers"] = layers[:without] + layers[without + 1 :]
        file.write_text(json.dumps(config))
        path = re.escape(repr(layers[without]["path"]))
        with pytest.raises(rf.RankfoldError, match=f"chain in the place of layer {path}"):
            type(model).from_pretrained(tmp_path / "small")
    config["quantization_config"]["plans"] = []
    file.write_text(json.dumps(config))
    with pytest.raises(rf.RankfoldError, match="chain in the place of layer"):
        type(model).from_pretrained(tmp_path / "small")


@pytest.mark.parametrize("known", [True, False], ids=["with", "without"])
def test_the_configuration_of_an_opened_model_opens_the_files_again(
    *, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixtral().save_pretrained(tmp_path / "whole")
    with monkeypatch.context() as absent:
        if not known:  # transformers: the experts stay apart in the files, and are stacked later
            absent.setattr(folders, "_installed", lambda: False)
        rf.compress_checkpoint(
            tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4), exclude="*experts*"
        )
    once = tf.MixtralForCausalLM.from_pretrained(tmp_path / "small")
    twice = rf.compress(once, rf.Ranks(3), exclude="*experts*").model
    for config in (once.config, twice.config):
        again = tf.MixtralForCausalLM.from_pretrained(tmp_path / "small", config=config)
        assert torch.equal(logits(again), logits(once))
        assert plans(again) == plans(once)


def test_from_pretrained_does_not_compress(tmp_path: Path) -> None:
    original = llama()
    method = compressed(original).model.config.quantization_config
    original.save_pretrained(tmp_path)
    with pytest.raises(rf.RankfoldError, match=r"then call rankfold\.compress"):
        type(original).from_pretrained(tmp_path, quantization_config=method)


def test_the_hooks_report_no_problem() -> None:
    compressed(llama())
    assert not registry().problems


def test_files_of_a_tokenizer_stay_where_a_model_is_saved(tmp_path: Path) -> None:
    small, folder = compressed(llama()), tmp_path / "small"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    for _ in range(2):
        small.save(folder)
        assert (folder / "tokenizer.json").read_text() == "{}"
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(folder)), logits(small.model))
    (folder / "notes.pdf").write_text("mine")
    with pytest.raises(rf.RankfoldError, match=r"holds 'notes\.pdf'"):
        small.save(folder)


def test_a_folder_of_save_pretrained_is_told_from_one_with_a_plan(tmp_path: Path) -> None:
    compressed(llama()).model.save_pretrained(tmp_path)
    with pytest.raises(rf.RankfoldError, match="opened by its from_pretrained"):
        rf.load(llama(), tmp_path)


@NEEDS_ACCELERATE
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_model_with_adapters_on_its_chains_is_not_saved(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    small = compressed(llama())
    tuned = peft.get_peft_model(small.model, peft.LoraConfig(target_modules=["q_proj.0"], r=2))
    with pytest.raises(
        rf.RankfoldError, match=r"q_proj\.0' has an adapter of peft.*merge_and_unload"
    ):
        small.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()
    merged = rf.Compressed(tuned.merge_and_unload(), small.plan)
    merged.save(tmp_path / "small")
    back = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(back), logits(merged.model))
