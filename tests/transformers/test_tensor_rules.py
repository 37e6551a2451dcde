"""Checkpoints of transformers' models, compressed without the models and loaded into fresh ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import rankfold as rf
from rankfold.policies.base import Policy

WORDS = 53
IDS = torch.arange(11)[None]
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def gpt2() -> Any:
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 17}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=WORDS, **sizes, **ends))


def llama() -> Any:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL))


def tied_llama() -> Any:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, tie_word_embeddings=True))


def mixtral() -> Any:
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SMALL, num_local_experts=4))


def qwen_moe() -> Any:
    sizes = {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8, "num_experts_per_tok": 2}
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SMALL, **sizes))


def gpt_oss() -> Any:
    return tf.GptOssForCausalLM(tf.GptOssConfig(**SMALL, num_local_experts=4, head_dim=8))


def jet_moe() -> Any:
    given = {name: SMALL[name] for name in SMALL if name != "num_attention_heads"}
    return tf.JetMoeForCausalLM(tf.JetMoeConfig(**given, num_local_experts=4, kv_channels=8))


def bigcode() -> Any:
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 17}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return tf.GPTBigCodeForCausalLM(tf.GPTBigCodeConfig(vocab_size=WORDS, **sizes, **ends))


def falcon() -> Any:
    sizes = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return tf.FalconForCausalLM(tf.FalconConfig(**sizes, **ends, num_attention_heads=4))


def bloom() -> Any:
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return tf.BloomForCausalLM(
        tf.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, **ends)
    )


def mamba() -> Any:
    sizes = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    return tf.MambaForCausalLM(tf.MambaConfig(**sizes, state_size=8))


def made(make: Callable[[], Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = make().eval().to(dtype)
    with torch.no_grad():  # biases and norms are constant in a fresh model
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        found = model(IDS, labels=IDS)
    return found.logits, found.loss


def same_as_live(make: Callable[[], Any], model: Any, folder: Path, policy: Policy) -> rf.Plan:
    """Compresses a checkpoint, loads it, and compares it with what its plan makes of the model."""
    plan = rf.compress_checkpoint(folder, folder.with_name("small"), policy)
    fresh = made(make, next(model.parameters()).dtype, seed=1)
    loaded = rf.load(fresh, folder.with_name("small"))
    logits, loss = outputs(loaded)
    given = {layer.path: layer for layer in plan.replaced}
    live = rf.compress(model, policy, include=list(given))
    assert {layer.path: layer.ranks for layer in live.plan.replaced} == {
        path: layer.ranks for path, layer in given.items()
    }
    assert set(live.model.state_dict()) == set(loaded.state_dict())
    for name, tensor in live.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    expected, _ = outputs(live.model)
    assert torch.equal(logits, expected)
    assert torch.isfinite(loss)
    return plan


@pytest.mark.parametrize(
    ("dtype", "shards"),
    [(torch.float32, "1GB"), (torch.float32, "20KB"), (torch.bfloat16, "20KB")],
    ids=str,
)
@pytest.mark.parametrize("make", [gpt2, llama, tied_llama, bigcode, falcon, bloom, mamba])
def test_a_saved_model_is_compressed_as_the_live_one_is(
    make: Callable[[], Any], shards: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = made(make, dtype)
    model.save_pretrained(tmp_path / "whole", max_shard_size=shards)
    files = list((tmp_path / "whole").glob("*.safetensors"))
    assert (len(files) > 1) == (shards == "20KB")
    plan = same_as_live(make, model, tmp_path / "whole", rf.Ratio(0.5))
    assert len(plan.replaced) >= 2


@pytest.mark.parametrize("make", [tied_llama, gpt2])
def test_a_tied_head_is_not_in_the_file_and_tied_in_the_loaded_model(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    made(make).save_pretrained(tmp_path / "whole")
    assert "lm_head.weight" not in load_file(tmp_path / "whole" / "model.safetensors")
    rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ratio(0.5))
    loaded = rf.load(made(make, seed=1), tmp_path / "small")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_a_conv1d_is_the_sequence_of_linears_that_it_is_in_a_model(tmp_path: Path) -> None:
    made(gpt2).save_pretrained(tmp_path / "whole")
    rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ranks(5))
    stored = load_file(tmp_path / "small" / "model.safetensors")
    path = "transformer.h.0.mlp.c_fc"
    shapes = {name: tuple(stored[name].shape) for name in stored if name.startswith(f"{path}.")}
    assert shapes == {
        f"{path}.0.weight": (5, 24),
        f"{path}.1.weight": (96, 5),
        f"{path}.1.bias": (96,),
    }


class TestWithoutAConfiguration:
    def test_the_length_of_the_bias_tells_the_layout(self, tmp_path: Path) -> None:
        model = made(gpt2)
        model.save_pretrained(tmp_path / "whole")
        (tmp_path / "whole" / "config.json").unlink()
        plan = same_as_live(gpt2, model, tmp_path / "whole", rf.Ratio(0.5))
        names = {layer.path.removeprefix("transformer.h.0.") for layer in plan.replaced}
        assert {"attn.c_attn", "mlp.c_fc", "mlp.c_proj"} <= names

    def test_a_linear_of_that_name_is_one(self, tmp_path: Path) -> None:
        model = made(bigcode)
        model.save_pretrained(tmp_path / "whole")
        (tmp_path / "whole" / "config.json").unlink()
        plan = same_as_live(bigcode, model, tmp_path / "whole", rf.Ratio(0.5))
        assert plan["transformer.h.0.mlp.c_fc"].op == "Linear 24→96"

    @pytest.mark.parametrize(
        ("bias", "shape", "reason"),
        [
            (6, (6, 6), "its shape (6, 6) does not tell"),
            (None, (6, 4), "there is no bias to tell"),
            (5, (6, 4), "its bias of (5,) does not fit (6, 4)"),
        ],
    )
    def test_a_layer_is_left_alone_where_nothing_tells(
        self, bias: int | None, shape: tuple[int, int], reason: str, tmp_path: Path
    ) -> None:
        tensors = {"h.c_proj.weight": torch.randn(shape), "other.weight": torch.randn(9, 7)}
        if bias is not None:
            tensors["h.c_proj.bias"] = torch.randn(bias)
        save_file(tensors, tmp_path / "model.safetensors")
        plan = rf.compress_checkpoint(tmp_path, tmp_path / "small", rf.Ranks(2))
        assert reason in plan["h.c_proj"].reason
        assert "config.json" in plan["h.c_proj"].reason
        stored = load_file(tmp_path / "small" / "weights.safetensors")
        assert torch.equal(stored["h.c_proj.weight"], tensors["h.c_proj.weight"])


@pytest.mark.parametrize(
    ("settings", "op"),
    [
        ({"model_type": "gpt2"}, "Linear 6→4"),
        ({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}}, "Linear 6→4"),
        ({"model_type": "gpt_bigcode"}, "Linear 4→6"),
    ],
)
def test_the_model_type_tells_the_layout(settings: dict[str, Any], op: str, tmp_path: Path) -> None:
    save_file({"h.c_proj.weight": torch.randn(6, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    plan = rf.compress_checkpoint(tmp_path, tmp_path / "small", rf.Ranks(2))
    assert plan["h.c_proj"].op == op


class TestExperts:
    @pytest.mark.parametrize(
        ("dtype", "shards"),
        [(torch.float32, "1GB"), (torch.float32, "40KB"), (torch.bfloat16, "40KB")],
        ids=str,
    )
    @pytest.mark.parametrize(
        ("make", "stack"),
        [
            (mixtral, "mlp.experts.gate_up_proj"),
            (qwen_moe, "mlp.experts.down_proj"),
            (gpt_oss, "mlp.experts.gate_up_proj"),
            (jet_moe, "mlp.input_linear.weight"),
        ],
    )
    def test_stacks_are_compressed_as_in_the_live_model(
        self,
        make: Callable[[], Any],
        stack: str,
        shards: str,
        dtype: torch.dtype,
        tmp_path: Path,
    ) -> None:
        model = made(make, dtype)
        folder = tmp_path / "whole"
        model.save_pretrained(folder, max_shard_size=shards, save_original_format=False)
        plan = same_as_live(make, model, folder, rf.Ratio(0.4))
        assert plan[f"model.layers.1.{stack}"].op.endswith("groups 4")
        assert plan[f"model.layers.1.{stack}"].method == "svd"

    @pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
    @pytest.mark.parametrize("make", [mixtral, gpt_oss])
    def test_full_rank_reproduces_every_implementation(
        self, make: Callable[[], Any], implementation: str
    ) -> None:
        model = made(make)
        model.set_experts_implementation(implementation)
        small = rf.compress(model, rf.Ranks("full"), include="*.experts.*")
        assert len(small.plan.replaced) == 4
        torch.testing.assert_close(outputs(small.model), outputs(model), rtol=1e-4, atol=1e-5)

    def test_factors_have_the_layout_of_the_stack(self, tmp_path: Path) -> None:
        model = made(gpt_oss)
        model.save_pretrained(tmp_path / "whole", save_original_format=False)
        rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ranks(5))
        stored = load_file(tmp_path / "small" / "model.safetensors")
        path = "model.layers.0.mlp.experts"
        first, last = (
            stored[f"{path}.parametrizations.gate_up_proj.original{place}"] for place in (0, 1)
        )
        assert (first.shape, last.shape) == ((4, 5, 80), (4, 32, 5))
        stack = model.model.layers[0].mlp.experts.gate_up_proj
        for product, matrix in zip(last @ first, stack, strict=True):
            left, values, right = torch.linalg.svd(matrix.detach())
            torch.testing.assert_close(product, (left[:, :5] * values[:5]) @ right[:5])
        bias = f"{path}.gate_up_proj_bias"
        assert torch.equal(stored[bias], model.state_dict()[bias])

    @pytest.mark.parametrize("make", [mixtral, gpt_oss])
    @pytest.mark.parametrize("configured", [True, False])
    def test_routers_are_left_alone(
        self, make: Callable[[], Any], configured: bool, tmp_path: Path
    ) -> None:
        model = made(make)
        model.save_pretrained(tmp_path / "whole", save_original_format=False)
        if not configured:
            (tmp_path / "whole" / "config.json").unlink()
        plan = same_as_live(make, model, tmp_path / "whole", rf.Ratio(0.4))
        routers = [layer for layer in plan.layers if "router of a mixture" in layer.reason]
        assert len(routers) == 2

    def test_experts_one_by_one_are_linears_where_no_configuration_tells(
        self, tmp_path: Path
    ) -> None:
        made(mixtral).save_pretrained(tmp_path / "whole", save_original_format=True)
        (tmp_path / "whole" / "config.json").unlink()
        plan = rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ranks(5))
        assert plan["model.layers.0.block_sparse_moe.experts.2.w1"].op == "Linear 32→40"
        with pytest.raises(rf.RankfoldError, match="compressed by itself"):
            rf.load(made(mixtral), tmp_path / "small")

    @pytest.mark.parametrize("make", [mixtral, qwen_moe])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_experts_one_by_one_are_the_stack_that_the_model_has(
        self, make: Callable[[], Any], dtype: torch.dtype, tmp_path: Path
    ) -> None:
        model = made(make, dtype)
        ways = {}
        for split in (True, False):
            folder, out = tmp_path / f"whole-{split}", tmp_path / f"small-{split}"
            model.save_pretrained(folder, max_shard_size="20KB", save_original_format=split)
            plan = rf.compress_checkpoint(folder, out, rf.Ratio(0.4))
            assert plan["model.layers.1.mlp.experts.gate_up_proj"].method == "svd"
            ways[split] = rf.load(made(make, dtype, seed=1), out).state_dict()
        assert ways[True].keys() == ways[False].keys()
        assert all(torch.equal(ways[True][name], ways[False][name]) for name in ways[True])


def test_layers_whose_weight_the_model_reads_itself_are_left_alone(tmp_path: Path) -> None:
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}

    def t5() -> Any:
        return tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=WORDS, **sizes, **ends))

    model = made(t5)
    model.save_pretrained(tmp_path / "whole")
    plan = rf.compress_checkpoint(tmp_path / "whole", tmp_path / "small", rf.Ratio(0.4))
    assert "reads its weight itself" in plan["encoder.block.0.layer.1.DenseReluDense.wo"].reason
    loaded = rf.load(made(t5, seed=1), tmp_path / "small")
    live = rf.compress(model, rf.Ratio(0.4), include=[layer.path for layer in plan.replaced])
    with torch.no_grad():
        found, expected = (m(input_ids=IDS, labels=IDS).logits for m in (loaded, live.model))
    assert torch.equal(found, expected)
