"""Convolutions padded as TensorFlow's "SAME": at any stride, for inputs of any size."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.ops.reference import forward
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.registry import registry
from rankfold_torch.layers.same_padding import SAME, SameConv2d
from rankfold_torch.layers.same_rules import read_same

EXTENTS = {1: [(11,), (12,), (1,)], 2: [(11, 9), (12, 8), (2, 1)], 3: [(5, 7, 6), (4, 3, 2)]}


class Same(SameConv2d):
    """A class that is not the adapter's own, with a `padding` that says nothing."""


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> None:
    home = ModuleType("home_of_the_rule")
    vars(home)["Same"] = Same
    monkeypatch.setitem(sys.modules, home.__name__, home)
    taught = LayerRule(
        "torch", "home_of_the_rule:Same", read="rankfold_torch.layers.same_rules:read_same"
    )
    monkeypatch.setattr(registry(), "rules", [*registry().rules, taught])


@pytest.mark.parametrize("axes", SAME)
def test_a_same_convolution_is_its_op_at_every_size(
    axes: int, distance: Callable[..., float]
) -> None:
    kernel, stride, dilation = (3, 4, 2)[:axes], (2, 3, 1)[:axes], (1, 2, 3)[:axes]
    layer: Any = SAME[axes](3, 5, kernel, stride=stride, dilation=dilation).double()  # type: ignore[call-arg,arg-type]  # all of them are convolutions
    for extent in EXTENTS[axes]:
        x = torch.randn(2, 3, *extent, dtype=torch.float64)
        y = forward(read_same(layer), x.numpy())
        assert distance(layer(x), torch.from_numpy(y)) < 1e-12


@pytest.mark.usefixtures("rule")
@pytest.mark.parametrize("method", ["tucker2", "spatial_svd", "channel_svd", "cp"])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
def test_every_stage_pads_by_the_size_of_its_input(
    method: str, stride: Any, distance: Callable[..., float]
) -> None:
    original = nn.Sequential(Same(6, 7, (4, 3), stride=stride, dilation=(1, 2)))
    with torch.no_grad():  # of CP rank 1, so that every method is exact
        factors = (torch.randn(7, 1, 1, 1), torch.randn(6, 1, 1), torch.randn(4, 1), torch.randn(3))
        original[0].weight.copy_(factors[0] * factors[1] * factors[2] * factors[3])
    small = rf.compress(original, rf.Ranks(1), methods=(method,))
    assert small.plan["0"].method == method
    for extent in EXTENTS[2]:
        x = torch.randn(2, 6, *extent)
        assert distance(small.model(x), original(x)) < 1e-5


@pytest.mark.usefixtures("rule")
def test_a_chain_of_same_convolutions_is_compressed_again_expanded_and_loaded(
    distance: Callable[..., float], tmp_path: Any
) -> None:
    original, x = nn.Sequential(Same(6, 7, 3, stride=2)), torch.randn(2, 6, 11, 8)
    small = rf.compress(original, rf.Ranks((3, 2)), methods=("tucker2",), inputs=x)
    again = rf.compress(small.model, rf.Ranks("full"), methods=("spatial_svd", "svd"))
    assert again.plan["0.1"].method == "spatial_svd"
    assert distance(again.model(x), small.model(x)) < 1e-5
    assert distance(small.expanded(original)(x), small.model(x)) < 1e-5
    small.save(tmp_path / "small")
    fresh = nn.Sequential(Same(6, 7, 3, stride=2))
    assert torch.equal(rf.load(fresh, tmp_path / "small")(x), small.model(x))


@pytest.mark.usefixtures("rule")
def test_macs_count_the_outputs_of_same_padding() -> None:
    original = nn.Sequential(Same(6, 7, 3, stride=2))
    plan = rf.plan(original, rf.Ranks("full"), inputs=torch.randn(1, 6, 11, 8))
    assert plan["0"].macs is not None
    assert plan["0"].macs[0] == 6 * 4 * 7 * 6 * 9


def test_a_kernel_of_one_needs_no_padding() -> None:
    chain = (rf.Conv(torch.randn(5, 3, 1, 1).numpy(), stride=2, padding="same"),)
    from rankfold_torch.layers.stock import build

    assert type(build(chain, nn.Conv2d(3, 5, 1))[0]) is nn.Conv2d


def test_a_same_convolution_is_traced_by_fx() -> None:
    layer, x = nn.Sequential(SameConv2d(3, 5, 3, stride=2)), torch.randn(2, 3, 8, 7)
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(traced(x), layer(x))
    assert torch.equal(traced(x[..., 1:]), layer(x[..., 1:]))
