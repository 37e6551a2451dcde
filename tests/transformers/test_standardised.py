"""BiT's convolutions, with the weight that they compute."""

import torch
from transformers import (
    BitConfig,
    BitForImageClassification,
)

import rankfold as rf


def test_full_rank_reproduces_bit_at_every_size() -> None:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4}
    config = BitConfig(**sizes, global_padding="SAME", num_labels=5)
    bit = BitForImageClassification(config).eval()
    small = rf.compress(bit, rf.Ranks("full"), include="*conv*")
    assert small.plan.replaced
    assert all("weight standardisation folded in" in each.reason for each in small.plan.replaced)
    for height, width in ((31, 28), (40, 33)):
        x = torch.randn(1, 3, height, width)
        with torch.no_grad():
            before, after = bit(x).logits, small.model(x).logits
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
