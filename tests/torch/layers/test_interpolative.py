"""Interpolative stages in PyTorch: what they compute, store and can be exported to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import rankfold as rf
from rankfold.decompose.base import decompose
from rankfold.ops import Conv, Linear
from rankfold.ops.interpolation import pivots_of_chain, stored_weight, with_stored_weight
from rankfold.ops.reference import forward
from rankfold.plugins.registry import registry
from rankfold_torch.layers import interpolative, stock
from rankfold_torch.layers.interpolative import Interpolative

METHODS = ("svd_id", "tucker2_id")
X = torch.randn(3, 5, 9, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(5, 14, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(14, 22, (3, 2)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(88, 40),
        nn.ReLU(),
        nn.Linear(40, 7),
    ).eval()


def compressed(model: nn.Module, inputs: torch.Tensor = X) -> rf.Compressed:
    return rf.compress(model, rf.Ratio(0.4), inputs=inputs, methods=METHODS)


def drawn(out: int, into: int, axes: int, bias: bool) -> Linear | Conv:
    rng = np.random.default_rng(7)
    tall, few, many = out >= into, min(out, into), max(out, into)
    pivots = tuple(sorted(map(int, rng.choice(many, few, replace=False))))
    shape = ((many - few, few) if tall else (few, many - few)) + (1,) * axes
    weight = with_stored_weight(rng.standard_normal(shape), pivots, tall=tall)
    added = rng.standard_normal(out) if bias else None
    return Conv(weight, added, pivots=pivots) if axes else Linear(weight, added, pivots=pivots)


@pytest.mark.parametrize("axes", range(4))
@pytest.mark.parametrize(("out", "into"), [(11, 4), (3, 13), (6, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_stage_computes_its_op(out: int, into: int, axes: int, bias: bool) -> None:
    op = drawn(out, into, axes, bias)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kernel = (1,) if axes else ()
    like = kinds[axes](into, out, *kernel, bias=bias, dtype=torch.float64)
    layer = interpolative.build(op, like)
    x = torch.randn(2, into, *(5, 3, 4)[:axes], dtype=torch.float64)
    assert np.allclose(layer(x).detach().numpy(), forward(op, x.numpy()))
    assert torch.allclose(layer(x[0]), layer(x)[0])  # without a batch axis
    assert layer.weight.numel() == (max(out, into) - min(out, into)) * min(out, into)
    weight, added = stock.to_array(layer.weight), layer.bias
    again = interpolative.read(layer, weight, None if added is None else stock.to_array(added))
    assert again.pivots == op.pivots
    assert np.array_equal(again.weight, op.weight)


def test_parameters_are_as_planned_and_outputs_those_of_the_plain_chains() -> None:
    model = network()
    small = compressed(model)
    assert {layer.method for layer in small.plan.replaced} == {"svd_id", "tucker2_id"}
    assert sum(p.numel() for p in small.model.parameters()) == small.plan.model_params[1]
    plain = rf.compress(model, rf.Ratio(0.4), inputs=X, methods=("svd", "tucker2"))
    ranks = {layer.path: layer.ranks for layer in plan_of(small).replaced}
    assert ranks == {layer.path: layer.ranks for layer in plain.plan.replaced}
    torch.testing.assert_close(small.model(X), plain.model(X))
    assert small.plan.model_params[1] < plain.plan.model_params[1]
    assert small.plan.macs[1] < plain.plan.macs[1]


def plan_of(small: rf.Compressed) -> rf.Plan:
    return rf.Plan.from_json(small.plan.to_json())


def test_planning_and_applying_give_the_same_bits() -> None:
    model = network()
    small = compressed(model)
    plan = rf.plan(model, rf.Ratio(0.4), inputs=X, methods=METHODS)
    assert plan.layers == small.plan.layers
    assert torch.equal(rf.apply(model, plan).model(X), small.model(X))


def test_a_saved_model_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    small = compressed(network())
    small.save(tmp_path / "small")
    names = load_file(tmp_path / "small" / "weights.safetensors")
    assert {name for name in names if name.endswith("order")} == {
        "2.0.order",
        "2.2.order",
        "0.0.order",
        "0.2.order",
        "5.1.order",
    }
    with torch.device("meta"):
        empty = network()
    for fresh in (network(), empty):
        assert torch.equal(rf.load(fresh, tmp_path / "small")(X), small.model(X))


def test_a_plan_pins_pivots_so_that_states_fit_other_weights() -> None:
    small = compressed(network())
    torch.manual_seed(5)
    other = rf.apply(network(), small.plan)
    assert [layer.pivots for layer in other.plan.layers] == [
        layer.pivots for layer in small.plan.layers
    ]
    assert other.plan["5"].error is not None
    parameters = dict(small.model.named_parameters())  # without orders
    other.model.load_state_dict(parameters, strict=False)
    assert torch.equal(other.model(X), small.model(X))


def test_a_plan_with_pivots_of_another_rank_leaves_the_layer() -> None:
    text = compressed(network()).plan.to_json().replace('"ranks": [\n    16\n   ]', '"ranks": [9]')
    plan = rf.Plan.from_json(text)
    assert plan["5"].ranks == (9,)
    layer = rf.apply(network(), plan).plan["5"]
    assert layer.method is None
    assert layer.reason.startswith("16 pivots do not fit a stage of 40 by 9")


def test_a_compressed_layer_is_expanded_and_not_compressed_twice() -> None:
    model = network()
    small = compressed(model)
    torch.testing.assert_close(small.expanded(model)(X), small.model(X))
    again = rf.plan(small.model, rf.Ranks(2), inputs=X)
    assert again["5.1"].reason.startswith("interpolative already")
    assert again["5.1"].macs is not None
    assert again["5.0"].method is not None
    assert again.macs[0] == small.plan.macs[1]


def test_training_keeps_what_is_passed_on() -> None:
    small = compressed(network()).model.train()
    target = torch.randn(3, 7)
    before = copy.deepcopy(small.state_dict())
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(small(X), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, value in small.state_dict().items():
        assert torch.equal(value, before[name]) == name.endswith("order")


def test_stages_are_scripted_traced_and_exported() -> None:
    small = compressed(network()).model
    expected = small(X)
    batch = torch.export.Dim("batch", min=2)
    for built in (
        torch.jit.script(small),
        torch.fx.symbolic_trace(small),
        torch.export.export(small, (X,), dynamic_shapes=({0: batch},)).module(),
        torch.compile(small, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(built(X), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_memory_format_are_those_of_the_layer(dtype: torch.dtype) -> None:
    model = network().to(dtype).to(memory_format=torch.channels_last)
    x = X.to(dtype).to(memory_format=torch.channels_last)
    small = compressed(model, x).model
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small(x).dtype == dtype
    plain = copy.deepcopy(small).double()(X.double())
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-12
    torch.testing.assert_close(small(x).double(), plain, atol=tolerance, rtol=tolerance)


def test_refitted_chains_are_interpolative() -> None:
    model = network()
    batches = [torch.randn(16, 5, 9, 8) for _ in range(4)]
    plain = rf.compress(
        model, rf.Ratio(0.3), inputs=X, methods=("svd", "tucker2"), calibration=batches
    )
    small = rf.compress(model, rf.Ratio(0.3), inputs=X, methods=METHODS, calibration=batches)
    assert any(layer.refit for layer in small.plan.replaced)
    for layer, other in zip(small.plan.replaced, plain.plan.replaced, strict=True):
        assert layer.pivots
        assert layer.measured == pytest.approx(other.measured, rel=1e-2)
    stages = [m for m in small.model.modules() if isinstance(m, Interpolative)]
    assert [len(pivots) for layer in small.plan.replaced for pivots in layer.pivots] == [
        stage.rank for stage in stages
    ]
    assert sum(p.numel() for p in small.model.parameters()) == small.plan.model_params[1]


def test_later_stages_of_wide_layers_are_refitted() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(30, 1300), nn.ReLU(), nn.Linear(1300, 24), nn.Linear(24, 9))
    batches = [torch.randn(64, 30) for _ in range(3)]
    small = rf.compress(
        model, rf.Ranks({"0": 6, "2": 7}), include=("0", "2"), methods="svd_id", calibration=batches
    )
    layer = small.plan["2"]
    assert layer.refit
    assert len(layer.pivots[0]) == 7
    stage = small.model[2][1]
    assert isinstance(stage, Interpolative)
    assert tuple(stage.order[list(layer.pivots[0])].tolist()) == tuple(range(7))


def test_budgets_of_parameters_take_interpolative_methods_by_default() -> None:
    model = network()
    by_params = rf.plan(model, rf.Budget(params=0.5), inputs=X)
    assert {layer.method for layer in by_params.replaced} <= {
        "svd_id",
        "tucker2_id",
        "channel_svd_id",
        "spatial_svd",
    }
    assert any(layer.pivots for layer in by_params.replaced)
    by_macs = rf.plan(model, rf.Budget(macs=0.5), inputs=X)
    assert not any(layer.pivots for layer in by_macs.replaced)
    named = rf.plan(model, rf.Budget(params=0.5), inputs=X, methods=("svd", "tucker2"))
    assert not any(layer.pivots for layer in named.replaced)


@pytest.mark.parametrize("name", ["svd_id", "tucker2_id"])
def test_tensors_are_decomposed_as_arrays_are(name: str) -> None:
    # Tensors of the CPU stand for those of an accelerator; pivots are chosen on the host.
    method = registry().methods([name])[name]
    shape = (22, 30) if name == "svd_id" else (22, 14, 3, 2)
    values = np.random.default_rng(3).standard_normal(shape)
    ranks = (7,) * len(method.max_ranks(rf.Linear(values) if name == "svd_id" else Conv(values)))
    make: Any = rf.Linear if name == "svd_id" else Conv
    chains = [decompose(method, make(v), ranks, "balanced") for v in (values, torch.tensor(values))]
    assert pivots_of_chain(chains[0]) == pivots_of_chain(chains[1])
    for stage, other in zip(*chains, strict=True):
        assert isinstance(other.weight, torch.Tensor)
        assert other.weight.is_contiguous()
        assert np.allclose(stage.weight, other.weight.numpy())
        assert np.allclose(stored_weight(stage), stored_weight(other).numpy())
