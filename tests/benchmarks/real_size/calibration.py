"""Compresses whole networks with calibration data and a refit.

    python -m tests.benchmarks.real_size.calibration [names ...]

prints the CPU time of `rankfold.compress` as a multiple of one forward and backward pass over the
calibration data, measured beside it on one thread, the share of the network that is left, and how
far its outputs are off. Weights are random; of ResNet-50 it takes minutes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from tests.benchmarks.models.networks import filled, resnet50
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetForImageClassification

import rankfold as rf

_EXAMPLES, _BATCH = 64, 8


@dataclass(frozen=True)
class Subject:
    """A network with its calibration data.

    Attributes:
        network: makes it.
        inputs: makes one batch from a seeded generator.
    """

    network: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], torch.Tensor]


def _photographs(generator: torch.Generator) -> torch.Tensor:
    """Smooth noise: neighbouring pixels are alike, as those of photographs are."""
    coarse = torch.randn(_BATCH, 3, 28, 28, generator=generator)
    return nn.functional.interpolate(coarse, size=224, mode="bicubic")


def _sentences(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 4000, (_BATCH, 128), generator=generator)


def _resnet18() -> nn.Module:
    config = ResNetConfig(
        layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], num_labels=1000
    )
    return filled(ResNetForImageClassification(config))


def _language_model() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=4000, n_embd=768, n_layer=12, n_head=12))


SUBJECTS = {
    "resnet18": Subject(_resnet18, _photographs),
    "resnet50": Subject(resnet50, _photographs),
    "language model": Subject(_language_model, _sentences),
}


def logits(outputs: object) -> torch.Tensor:
    """The logits of a network of transformers, or of any other."""
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits  # type: ignore[attr-defined]


def passes(model: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """One forward and backward pass over all batches."""
    for batch in batches:
        logits(model(batch)).logsumexp(-1).sum().backward()
        model.zero_grad()


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def main(names: Sequence[str]) -> None:
    """Prints a table."""
    print(statement(1))
    print("| | passes, CPU s | compress / passes | multiply-accumulates left | outputs off by |")
    print("|---|---:|---:|---:|---:|")
    torch.set_num_threads(1)
    with limited(1):
        for name in names:
            torch.manual_seed(0)
            subject = SUBJECTS[name]
            model = subject.network().eval()
            generator = torch.Generator().manual_seed(0)
            batches = [subject.inputs(generator) for _ in range(_EXAMPLES // _BATCH)]
            base = seconds(lambda: passes(model, batches))  # noqa: B023 - called at once
            results: list[rf.Compressed] = []
            taken = seconds(
                lambda: results.append(  # noqa: B023
                    rf.compress(
                        model,  # noqa: B023
                        rf.Budget(macs=0.5),
                        inputs=batches[0][:1],  # noqa: B023
                        calibration=batches,  # noqa: B023
                    )
                )
            )
            (small,) = results
            before, after = small.plan.macs
            with torch.no_grad():
                original = logits(model(batches[0]))
                apart = logits(small.model(batches[0])) - original
            spread = original - original.mean(0)
            off = float(apart.norm() / spread.norm())
            print(
                f"| {name} | {base:.1f} | {taken / base:.1f} | {after / before:.1%} | {off:.1%} |"
            )


if __name__ == "__main__":
    main(sys.argv[1:] or list(SUBJECTS))
