"""Layers and their chains stand under the names of the model, whatever the files call them."""

import pytest
from tests.tiny_transformers import tiny

import rankfold as rf
from rankfold_transformers.file_names import FileNames, chains_in, chains_of, names_in


def test_a_chain_goes_where_the_layer_is_renamed_to() -> None:
    paths, names = names_in(
        tiny("vit"),
        ["vit.encoder.layer.1.attention.attention.key", "vit.encoder.layer.0.output.dense.0"],
        [
            "vit.encoder.layer.1.attention.attention.key.0.weight",
            "vit.encoder.layer.1.attention.attention.key.1.bias",
            "vit.encoder.layer.0.layernorm_before.weight",
        ],
    )
    key = paths["vit.encoder.layer.1.attention.attention.key"]
    assert f"{key}.weight" in FileNames(tiny("vit")).state
    assert names["vit.encoder.layer.1.attention.attention.key.0.weight"] == f"{key}.0.weight"
    assert names["vit.encoder.layer.1.attention.attention.key.1.bias"] == f"{key}.1.bias"
    norm = names["vit.encoder.layer.0.layernorm_before.weight"]
    assert norm in FileNames(tiny("vit")).state


def test_a_layer_within_a_chain_follows_it() -> None:
    path = "vit.encoder.layer.1.attention.attention.key"
    paths, names = chains_in(
        tiny("vit"), [path, f"{path}.0"], [f"{path}.0.1.weight", f"{path}.1.weight"]
    )
    assert paths[f"{path}.0"] == f"{paths[path]}.0"
    assert names[f"{path}.0.1.weight"] == f"{paths[path]}.0.1.weight"


def test_names_of_the_model_itself_stay() -> None:
    model = tiny("mixtral")
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    start = "model.layers.0.mlp.experts.parametrizations.gate_up_proj.original"
    paths, names = names_in(model, [stack], [f"{start}0", f"{start}1", "lm_head.weight"])
    assert paths == {stack: stack}
    assert all(name == other for name, other in names.items())


def test_an_expert_that_was_compressed_by_itself_is_an_error() -> None:
    path = "model.layers.0.block_sparse_moe.experts.1.w2"
    with pytest.raises(rf.RankfoldError, match=r"compressed by itself: compress .* anew"):
        chains_in(tiny("mixtral"), [path], [f"{path}.0.weight"])


def test_chains_are_told_by_the_numbers_of_their_stages() -> None:
    tensors = [
        *("fc.0.weight", "fc.1.weight", "fc.1.bias"),
        *("up.0.weight", "up.1.0.weight", "up.1.1.weight"),
        *("h.0.mlp.weight", "h.1.mlp.weight"),
        *("head.0.weight", "head.2.weight"),
        *("own.0.weight", "own.0.bias", "own.1.weight", "own.1.bias"),
        *("whole.weight", "whole.0.weight", "whole.1.weight"),
        *("m.parametrizations.stack.original0", "m.parametrizations.stack.original1"),
    ]
    assert chains_of(tensors) == [
        ("fc", "fc.weight"),
        ("m.stack", "m.stack"),
        ("up", "up.weight"),
        ("up.1", "up.1.weight"),
    ]
