"""Plans whole networks without data, and compresses one large matrix.

    python -m tests.benchmarks.real_size.planning

prints the CPU time of each as a multiple of references of NumPy that are measured beside it: for a
network, the eigendecomposition of every channel Gram matrix of its ungrouped convolutions; for the
matrix, its Gram matrix with an eigendecomposition. References are measured with the number of
threads that BLAS takes by itself and with one: on busy cores the first takes many times the second.
Ten minutes on two cores that are idle otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from tests.benchmarks.models.networks import filled
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import rankfold as rf

_SIDE = 4096
_SHARE = 0.05
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ConvNeXt-T": lambda: ConvNextForImageClassification(ConvNextConfig(num_labels=1000)),
    "MobileNetV2": lambda: MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1001)),
    "ResNet-50": lambda: ResNetForImageClassification(ResNetConfig(num_labels=1000)),
}


def main() -> None:
    """Prints a table."""
    print(statement())
    # What is imported on the way is no part of it.
    rf.compress(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rf.Budget(params=0.9))
    print("| | CPU s | × reference | × reference on one thread |")
    print("|---|---:|---:|---:|")
    x = torch.zeros(1, 3, 224, 224)
    for name, network in NETWORKS.items():
        model = filled(network())
        row(
            f"plan {name}, Budget(macs=0.5)",
            lambda model=model: rf.plan(model, rf.Budget(macs=0.5), inputs=x),
            lambda model=model: channel_eigenpairs(model),
        )
    layer = filled(nn.Sequential(nn.Linear(_SIDE, _SIDE, bias=False)))
    weight = layer[0].weight.detach().numpy()
    ranks = max(1, int(_SHARE * _SIDE))
    for label, run in {
        f"compress a {_SIDE}² Linear, Ratio({_SHARE})": lambda: rf.compress(
            layer, rf.Ratio(_SHARE), include="*"
        ),
        f"compress a {_SIDE}² Linear, Ranks({ranks})": lambda: rf.compress(layer, rf.Ranks(ranks)),
        f"truncated_svd of it, {ranks}, exact=True": lambda: rf.truncated_svd(
            rf.ops.Linear(weight), ranks, exact=True
        ),
    }.items():
        row(label, run, lambda: eigenpairs(weight.astype(np.float64)))


def row(label: str, run: Callable[[], object], reference: Callable[[], object]) -> None:
    """Prints one line."""
    ours, theirs = cpu(run), cpu(reference)
    with limited(1):
        alone = cpu(reference)
    print(f"| {label} | {ours:.1f} | {ours / theirs:.2f} | {ours / alone:.2f} |", flush=True)


def cpu(run: Callable[[], object]) -> float:
    """CPU seconds of one call, of all threads."""
    began = time.process_time()
    run()
    return time.process_time() - began


def channel_eigenpairs(model: nn.Module) -> None:
    """Decomposes the two channel Gram matrices of every ungrouped convolution."""
    for weight in kernels(model):
        eigenpairs(weight.reshape(len(weight), -1))
        eigenpairs(weight.swapaxes(0, 1).reshape(weight.shape[1], -1))


def kernels(model: nn.Module) -> Iterator[np.ndarray]:
    """Weights (out, in, *kernel) of the ungrouped convolutions, in float64."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            yield module.weight.detach().double().numpy()


def eigenpairs(matrix: np.ndarray) -> object:
    """Decomposes the Gram matrix of the rows."""
    return np.linalg.eigh(matrix @ matrix.T)


if __name__ == "__main__":
    main()
