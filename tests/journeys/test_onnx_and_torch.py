"""One network as a PyTorch model and as an ONNX graph: plans and results agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.benchmarks.accuracy.data import Data, digits
from tests.benchmarks.onnx.same_network import as_graph, compressed, network_of
from tests.onnx.graphs import near, run

import rankfold as rf

EXAMPLES = 128


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Sequential:
    return network_of(0, data, epochs=2)


def outputs(model: Any, data: Data) -> np.ndarray:
    images = data.test[0][:100]
    if not isinstance(model, nn.Module):
        return run(model, x=images.numpy())
    with torch.no_grad():
        logits: np.ndarray = model(images).numpy()
    return logits


def choices(plan: rf.Plan) -> list[tuple[str, str | None, tuple[int, ...]]]:
    return [(layer.path, layer.method, layer.ranks) for layer in plan.layers]


def test_the_graph_is_the_network(network: nn.Sequential, data: Data) -> None:
    near(outputs(as_graph(network, 1), data), outputs(network, data))


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_by_weights_alone_both_get_the_same_chains(
    share: float, network: nn.Sequential, data: Data
) -> None:
    batches = data.calibration(EXAMPLES, 0)
    torch_small = compressed(network, batches, share, "weights alone")
    onnx_small = compressed(as_graph(network, 1), batches, share, "weights alone")
    assert choices(onnx_small.plan) == choices(torch_small.plan)
    assert len(torch_small.plan.replaced) > 1
    assert onnx_small.plan.macs == torch_small.plan.macs
    assert onnx_small.plan.params == torch_small.plan.params
    for layer, other in zip(onnx_small.plan.replaced, torch_small.plan.replaced, strict=True):
        assert layer.error == pytest.approx(other.error, rel=1e-3)
    near(outputs(onnx_small.model, data), outputs(torch_small.model, data), 1e-4)


def test_with_data_both_lose_the_same(network: nn.Sequential, data: Data) -> None:
    batches = data.calibration(EXAMPLES, 0)
    losses = []
    for model in (network, as_graph(network, 1)):
        small = compressed(model, batches, 0.7, "refitted")
        assert small.plan.macs is not None
        assert small.plan.macs[1] <= 0.7 * small.plan.macs[0]
        assert small.plan.loss is not None
        losses.append(small.plan.loss[1])
    # Shares of the outputs' square. The graph has noise in place of gradients, so that it gets
    # other chains, which lose as much. Those by weights alone lose more than a tenth.
    assert min(losses) > 0
    assert max(losses) - min(losses) < 1e-3


def test_the_plan_of_a_model_is_carried_out_on_the_graph(
    network: nn.Sequential, data: Data
) -> None:
    plan = compressed(network, data.calibration(EXAMPLES, 0), 0.5, "calibrated").plan
    assert len(plan.replaced) > 1
    small, graph = rf.apply(network, plan), rf.apply(as_graph(network, 1), plan)
    near(outputs(graph.model, data), outputs(small.model, data), 1e-4)
