"""The layer rules for transformers: GPT-2 is compressed although none of its layers is stock."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

import rankfold as rf

PROJECTIONS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def gpt2(request: pytest.FixtureRequest) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=53, n_embd=24, n_layer=1, n_head=3, n_positions=17)
    return GPT2LMHeadModel(config).eval().to(request.param)


def test_full_rank_reproduces_gpt2(gpt2: GPT2LMHeadModel) -> None:
    ids = torch.arange(11)[None]
    small = rf.compress(gpt2, rf.Ranks("full"), inputs={"input_ids": ids})
    for name in PROJECTIONS:
        assert small.plan[f"transformer.h.0.{name}"].method == "svd"
    with torch.no_grad():
        before, after = gpt2(ids).logits, small.model(ids).logits
    assert after.dtype == before.dtype
    tolerance = 32 * torch.finfo(before.dtype).eps
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)


def test_a_projection_becomes_two_linears_with_the_bias_on_the_last(gpt2: GPT2LMHeadModel) -> None:
    small = rf.compress(gpt2, rf.Ranks(5))
    first, last = small.model.transformer.h[0].mlp.c_fc
    assert (first.in_features, first.out_features, last.out_features) == (24, 5, 96)
    assert first.bias is None
    assert torch.equal(last.bias, gpt2.transformer.h[0].mlp.c_fc.bias)
