"""Tiny models of transformers of any architecture: its default configuration, with small sizes."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ARCHITECTURES = (
    *("albert", "audio-spectrogram-transformer", "bart", "beit", "bert", "bigbird_pegasus"),
    *("blip", "bloom", "clip", "codegen", "cohere", "convbert", "ctrl", "deberta"),
    *("deberta-v2", "deepseek_v3", "deit", "dinov2", "distilbert", "dpr", "electra"),
    *(
        "falcon",
        "falcon_h1",
        "fnet",
        "gemma",
        "gemma2",
        "gemma3",
        "glm4_moe",
        "gpt2",
        "gpt_bigcode",
    ),
    *("gpt_neox", "gpt_oss", "gptj", "granitemoe", "hubert", "internvl", "jamba"),
    *("layoutlm", "llama", "llava", "longformer", "m2m_100", "mamba", "marian", "mbart"),
    *("minimax_m3_vl", "mistral", "mixtral", "molmo2_text", "mpnet", "mpt", "nomic_bert", "olmo2"),
    *("olmoe", "opt", "paligemma", "pegasus", "phi", "phi3", "qwen2", "qwen2_audio", "qwen2_moe"),
    *("qwen2_vl", "qwen3", "qwen3_moe", "roberta", "rwkv", "sam", "segformer", "siglip"),
    *("smollm3", "speecht5", "stablelm", "starcoder2", "swin", "t5", "videomae", "vilt", "vit"),
    *("vit_mae", "vivit", "wav2vec2", "whisper", "xglm", "xlm-roberta", "xlnet", "yolos"),
)
"""Of language, vision, sound; tensors of many have other names in their files."""
_WIDTHS = (
    *("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "model_dim"),
    *("decoder_hidden_size", "encoder_hidden_size", "word_embed_proj_dim", "out_hidden_size"),
    *("text_embed_dim", "vision_embed_dim", "output_dim", "vision_output_dim"),
)
_INNER = (
    *("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("hidden_dim", "mlp_dim", "dim_feedforward", "ffn_hidden_size", "intermediate_size_mlp"),
    *("encoder_intermediate_size", "decoder_intermediate_size"),
)
_DEPTHS = (
    *("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"),
    *("num_decoder_layers", "layers", "depth"),
    *("encoder_num_hidden_layers", "decoder_num_hidden_layers"),
)
_HEADS = (
    *("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"),
    *("encoder_attention_heads", "decoder_attention_heads", "mamba_n_heads"),
    *("encoder_num_attention_heads", "decoder_num_attention_heads"),
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOKENS = {
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "image_token_id": 90,
    "image_token_index": 90,
    "video_token_id": 91,
    "video_token_index": 91,
    "audio_token_id": 92,
    "audio_token_index": 92,
    "vision_start_token_id": 93,
    "vision_end_token_id": 94,
    "vocab_size_per_layer_input": 99,
}
SIZES = {
    **dict.fromkeys(_WIDTHS, 32),
    **dict.fromkeys(_INNER, 40),
    **dict.fromkeys(_DEPTHS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_EXPERTS, 4),
    **_TOKENS,
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("encoder_num_key_value_heads", "decoder_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "codebook_dim", "state_size"), 8),
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_head_dim": 16,
    "projection_dim": 24,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "codebook_size": 16,
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    "moe_num_shared_experts": 1,
    "image_size": 24,
    "patch_size": 6,
    "num_channels": 3,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    "max_source_positions": 60,
    "max_target_positions": 60,
    "max_sequence_length": 64,
    "num_mel_bins": 16,
    "rotary_dim": 4,
    "relative_attention_num_buckets": 8,
    "num_labels": 5,
    "num_classes": 5,
    "hidden_size_per_layer_input": 8,
    "mamba_d_state": 8,
    "time_step_rank": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "audio_channels": 1,
    "block_size": 16,
    "window_size": 4,
    "num_queries": 5,
    "decoder_dim": 32,
    "n_mels": 16,
}
_TASKS = (
    *("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MASKED_LM"),
    *("IMAGE_CLASSIFICATION", "SPEECH_SEQ_2_SEQ", "CTC", "AUDIO_CLASSIFICATION"),
    *("OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "TEXT_TO_WAVEFORM", ""),
)
_MOST = 5_000_000
_DEPTH = 3


def tiny(kind: str, seed: int = 0) -> Any:
    """Make a model of a model_type, with weights at random.

    Raises:
        ValueError: it has sizes by names that are not known here, and would be large.
    """
    cls = model_class(kind)
    config = _shrunk(cls.config_class or CONFIG_MAPPING[kind], _DEPTH)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in cls(config).parameters())
    if size > _MOST:
        raise ValueError(f"{kind} has {size} parameters at the sizes of this table")
    torch.manual_seed(seed)
    return cls(config).eval()


def model_class(kind: str) -> Any:
    """Return the class of models of a model_type with the head that it is most used with."""
    for task in _TASKS:
        words = f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES"
        name = getattr(modeling_auto, words, {}).get(kind)
        name = name[0] if isinstance(name, (tuple, list)) else name
        if name and hasattr(transformers, name):
            return getattr(transformers, name)
    raise ValueError(f"transformers has no model of type {kind!r}")


def _shrunk(cls: Any, depth: int) -> Any:
    """Return a configuration with the sizes of the table, and its parts with them."""
    default = cls()
    values: dict[str, Any] = {}
    for name in default.to_dict():
        value = getattr(default, name, None)
        if isinstance(value, transformers.PreTrainedConfig) and depth:
            values[name] = _shrunk(type(value), depth - 1).to_dict()
        elif name in SIZES and type(value) is int:
            values[name] = SIZES[name]
        elif name in ("layer_types", "mlp_layer_types") and isinstance(value, list):
            kinds = list(dict.fromkeys(value))  # two layers, of two kinds where there are two
            values[name] = (kinds * 2)[:2]
    return cls(**values)
