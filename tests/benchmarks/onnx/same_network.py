"""Compresses one network as an ONNX graph and as a PyTorch model, from the same examples.

    python -m tests.benchmarks.onnx.same_network

trains a small convolutional network on scikit-learn's digits, writes it as an ONNX graph,
compresses both at some shares of the multiply-accumulates, tests each by its own runtime, and
writes a section of docs/results/onnx.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.benchmarks.accuracy.data import Data, digits
from tests.benchmarks.accuracy.networks import vgg
from tests.benchmarks.accuracy.training import accuracy, train
from tests.benchmarks.decomposition.machine import statement
from tests.benchmarks.decomposition.threads import limited
from torch import nn

import onnx
import rankfold as rf
from onnx import TensorProto, helper, numpy_helper
from rankfold_onnx import runtime

FILE = Path(__file__).parents[3] / "docs" / "results" / "onnx.md"
HEADING = "## The same network as ONNX and as PyTorch"
WAYS = ("refitted", "calibrated", "weights alone")
_SHARES = (0.7, 0.5, 0.3, 0.15)
_SEEDS = (0, 1, 2, 3, 4)
_EXAMPLES = 256
_EPOCHS, _RATE = 20, 3e-3
_OPSET, _IR = 17, 8
"""Versions that every onnxruntime of the last years reads."""
Row = dict[str, Any]


def as_graph(model: nn.Sequential, channels: int) -> onnx.ModelProto:
    """Write a sequence of layers as an ONNX graph; nodes have the names of the modules.

    Args:
        model: of convolutions, rectifiers, poolings and linear layers.
        channels: of the images that go in.
    """
    nodes, tensors, value = [], [], "x"
    for name, module in model.named_children():
        kind, parameters, attributes = _node(module)
        names = [f"{name}.{key}" for key in parameters]
        tensors += [
            numpy_helper.from_array(tensor.detach().numpy(), full)
            for full, tensor in zip(names, parameters.values(), strict=True)
        ]
        output = f"{name}.out"
        nodes.append(helper.make_node(kind, [value, *names], [output], name=name, **attributes))
        value = output
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, "h", "w"])
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", None])
    graph = helper.make_graph(nodes, "network", [x], [y], tensors)
    opset = [helper.make_opsetid("", _OPSET)]
    whole = helper.make_model(graph, opset_imports=opset, ir_version=_IR)
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _node(module: nn.Module) -> tuple[str, dict[str, torch.Tensor], dict[str, Any]]:
    """Return the type of the node for a module, its tensors in order, and its attributes."""
    tensors = dict(module.named_parameters())
    if isinstance(module, nn.Conv2d):
        (vertical, horizontal), strides = module.padding, list(module.stride)
        pads = [vertical, horizontal, vertical, horizontal]
        return (
            "Conv",
            tensors,
            {"kernel_shape": module.kernel_size, "pads": pads, "strides": strides},
        )
    if isinstance(module, nn.Linear):
        return "Gemm", tensors, {"transB": 1}
    if isinstance(module, nn.MaxPool2d):
        return "MaxPool", {}, {"kernel_shape": [module.kernel_size] * 2, "strides": [2, 2]}
    simple = {nn.ReLU: "Relu", nn.Flatten: "Flatten"}
    return simple[type(module)], {}, {}


def network_of(seed: int, data: Data, epochs: float = _EPOCHS) -> nn.Sequential:
    """Train a network on the digits, (n, 1, 8, 8)."""
    torch.manual_seed(seed)
    network = vgg(10, widths=(32, 64))
    assert isinstance(network, nn.Sequential)
    train(network, data, epochs=epochs, rate=_RATE, seed=seed)
    return network


def rows_of(seed: int, data: Data, shares: Sequence[float]) -> Iterator[Row]:
    """Train a network and compress it in every way at every share, both as PyTorch and as ONNX."""
    network = network_of(seed, data)
    models = {"PyTorch": network, "ONNX": as_graph(network, 1)}
    batches = data.calibration(_EXAMPLES, seed)
    for share in (1.0, *shares):
        for way in WAYS if share < 1 else ("original",):
            for kind, model in models.items():
                began = time.process_time()
                small = compressed(model, batches, share, way) if share < 1 else None
                yield {
                    "seed": seed,
                    "asked": share,
                    "way": way,
                    "kind": kind,
                    "accuracy": scored(model if small is None else small.model, data),
                    "seconds": time.process_time() - began,
                }


def compressed(
    model: Any, batches: Sequence[torch.Tensor], share: float, way: str
) -> rf.Compressed:
    """Compress either form of the network on the same examples."""
    examples: list[Any] = list(batches)
    if isinstance(model, onnx.ModelProto):
        examples = [batch.numpy() for batch in batches]
    inputs, budget = examples[0][:1], rf.Budget(macs=share)
    if way == "weights alone":
        return rf.compress(model, budget, inputs=inputs)
    return rf.compress(model, budget, inputs=inputs, calibration=examples, refit=way == "refitted")


def scored(model: Any, data: Data) -> float:
    """Return the share of the test images whose class is right, in percent, by its own runtime."""
    if isinstance(model, nn.Module):
        return accuracy(model, data)
    images, labels = data.test
    (logits,) = runtime.session(model).run(None, {"x": images.numpy()})
    return 100 * float(np.mean(logits.argmax(1) == labels.numpy()))


def section(rows: Sequence[Row], machine: str) -> str:
    """A table of the means over the seeds, PyTorch beside ONNX."""
    seeds = len({row["seed"] for row in rows})
    whole = " and ".join(
        f"{_means(rows, 1.0, 'original', kind, 'accuracy'):.1f}" for kind in ("PyTorch", "ONNX")
    )
    lines = [
        HEADING,
        "",
        "Written by `python -m tests.benchmarks.onnx.same_network`",
        f"{machine}.",
        "",
        "A convolutional network on scikit-learn's digits, compressed as a PyTorch model and as",
        f"the ONNX graph of it, with the same {_EXAMPLES} unlabelled examples, tested by PyTorch",
        "and by onnxruntime on the same images. Nothing is fine-tuned. Accuracy in %, means of",
        f"{seeds} seeds; of the original {whole}. What an error of a layer does to the outputs",
        "is told by gradients in PyTorch, and by noise in ONNX. Seconds are CPU time of the",
        "compression and the test.",
        "",
        "| MACs | way | PyTorch | ONNX | seconds, PyTorch | seconds, ONNX |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for share in dict.fromkeys(row["asked"] for row in rows if row["asked"] < 1):
        for way in WAYS:
            cells = [
                f"{_means(rows, share, way, kind, what):.1f}"
                for what in ("accuracy", "seconds")
                for kind in ("PyTorch", "ONNX")
            ]
            lines.append(f"| {share:.0%} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _means(rows: Sequence[Row], share: float, way: str, kind: str, what: str) -> float:
    key = (share, way, kind)
    return float(
        np.mean([row[what] for row in rows if (row["asked"], row["way"], row["kind"]) == key])
    )


def section_of(page: str) -> str:
    """Return the section in a page, with an empty line before it; "" where it has none."""
    _, heading, rest = page.partition(f"\n{HEADING}\n")
    return heading + rest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.onnx.same_network")
    parser.add_argument("--shares", type=float, nargs="+", default=_SHARES, help="of the MACs")
    parser.add_argument("--seeds", type=int, nargs="+", default=_SEEDS)
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    options = parser.parse_args()
    rows: list[Row] = []
    data = digits()
    with limited(1):
        for seed in options.seeds:
            for row in rows_of(seed, data, options.shares):
                rows.append(row)
                print(json.dumps(row), flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnxruntime"))
    page = options.output.read_text() if options.output.exists() else ""
    before = page.removesuffix(section_of(page))
    text = section(rows, f"{statement(1)}; {packages}")
    options.output.write_text(f"{before}\n{text}")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
