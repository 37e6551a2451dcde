"""Peak memory of a compression with calibration data, by the depth of a language model.

    python -m tests.benchmarks.real_size.memory [depths ...]

prints, for transformers of width 512 (4 and 24 blocks unless others are given), the peak of
`rankfold.compress` with a refit above the model and one forward and backward pass, as a share of
the weights of one block, without the weights of the result. Each runs in a process of its own.
Minutes for each block on a slow core.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.peak_memory import PEAK

_DEPTHS = ("4", "24")
_SCRIPT = (
    PEAK
    + """
import json
import torch
import rankfold as rf
from rankfold.pipeline import execution
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.first(x)
        q, k, v = (
            layer(y).view(*y.shape[:2], -1, 64).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    def __init__(self, width, depth, vocabulary, length):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def compressed(model, batches):
    policy = rf.Budget(params=0.5)
    return rf.compress(model, policy, inputs=batches[0], calibration=batches).model


def size(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def tokens(vocabulary, count):
    return [torch.randint(vocabulary, (4, 128)) for _ in range(count)]


torch.set_num_threads(1)
torch.manual_seed(0)
compressed(Transformer(64, 1, 50, 128), tokens(50, 2))  # what is imported on the way
model, batches = Transformer(512, int(sys.argv[1]), 1000, 128), tokens(1000, 8)
model(batches[0]).logsumexp(-1).mean().backward()
model.zero_grad(set_to_none=True)
before, stages = peak(), {}


def staged(name, function):
    def run(*arguments, **options):
        result = function(*arguments, **options)
        stages[name] = max(stages.get(name, 0), peak() - before)
        return result

    return run


# The peak only rises, so a stage that shows no more than the one before it needs no more.
execution.allocate = staged("moments and choices", execution.allocate)
execution._replacements = staged("refit", execution._replacements)
small = compressed(model, batches)
stages["all"] = peak() - before
block = size(model.blocks[0])
print(json.dumps({"stages": {k: v / block for k, v in stages.items()}, "model": size(model) / block,
                  "result": size(small) / block}))
"""
)


def main() -> None:
    """Print one row for each depth, in weights of a block."""
    rows = [_measured(depth) for depth in sys.argv[1:] or _DEPTHS]
    print(
        "| blocks | model | result | moments and choices | with the refit | all, less the result |"
    )
    print("|---|---|---|---|---|---|")
    for depth, row in rows:
        stages, result = row["stages"], row["result"]
        cells = (row["model"], result, *list(stages.values())[:2], stages["all"] - result)
        print(f"| {depth} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")


def _measured(depth: str) -> tuple[str, dict]:
    command = [sys.executable, "-c", _SCRIPT, depth]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return depth, json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    main()
