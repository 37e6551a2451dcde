"""Tensors that lie in one storage, and whether they share memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold_torch.usage.shared_memory import overlap, storage


class Tied(nn.Module):
    def __init__(self, tie: Callable[[Any], None]) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 11)
        self.inner = nn.Linear(11, 11)
        self.head = nn.Linear(11, 17, bias=False)
        tie(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(ids)))


def tie_weight(model: Any) -> None:
    model.head.weight = model.embed.weight


def tie_memory(model: Any) -> None:
    model.head.weight = nn.Parameter(model.embed.weight.data)


def tie_transposed(model: Any) -> None:
    model.head = nn.Linear(17, 11, bias=False)
    model.head.weight = nn.Parameter(model.embed.weight.data.T)


def tie_part(model: Any) -> None:
    model.inner.weight = nn.Parameter(model.embed.weight.data[2:13])


def tie_buffer(model: Any) -> None:
    model.register_buffer("table", model.embed.weight.data)


def tie_own(model: Any) -> None:
    model.table = model.embed.weight


TIES = {
    "weight": (tie_weight, "embed", "tied: its weight is also 'head.weight'"),
    "weight, other side": (tie_weight, "head", "tied: its weight is also 'embed.weight'"),
    "memory": (tie_memory, "head", "tied: its weight is also 'embed.weight'"),
    "transposed view": (tie_transposed, "head", "tied: its weight is also 'embed.weight'"),
    "part": (tie_part, "inner", "tied: its weight is also 'embed.weight'"),
    "buffer": (tie_buffer, "embed", "tied: its weight is also 'table'"),
    "parameter of the model": (tie_own, "embed", "tied: its weight is also 'table'"),
}


@pytest.mark.parametrize("case", TIES)
def test_a_tied_weight_is_left_alone(case: str) -> None:
    tie, path, reason = TIES[case]
    assert rf.plan(Tied(tie), rf.Ranks(2))[path].reason == reason


@pytest.mark.parametrize("inplace", [True, False])
def test_tied_weights_stay_tied(inplace: bool) -> None:
    small = rf.compress(Tied(tie_weight), rf.Ranks(2), inplace=inplace).model
    assert small.head.weight is small.embed.weight


def test_the_layers_beside_tied_ones_are_replaced() -> None:
    plan = rf.plan(Tied(tie_weight), rf.Ranks(2))
    assert [layer.path for layer in plan.replaced] == ["inner"]


def test_a_bias_tied_alone_leaves_the_layer_alone() -> None:
    model = nn.Sequential(nn.Linear(11, 7), nn.Linear(5, 7))
    model[1].bias = model[0].bias
    plan = rf.plan(model, rf.Ranks(2))
    assert [layer.reason for layer in plan.layers] == [
        "tied: its bias is also '1.bias'",
        "tied: its bias is also '0.bias'",
    ]


def test_views_that_meet_share_memory_whatever_their_dtype() -> None:
    whole = torch.arange(12.0)
    halves = whole[:6], whole[6:]
    assert storage(halves[0]) == storage(halves[1])
    assert not overlap(*halves)
    assert overlap(whole[:7], halves[1])
    assert overlap(whole.reshape(3, 4).T, whole[11:])
    # in bytes: the first 12 numbers of two bytes are the first 6 of four
    short = whole.view(torch.bfloat16)
    assert overlap(short[:12], halves[0])
    assert not overlap(short[:12], halves[1])


def test_tensors_without_memory_share_none() -> None:
    empty, meta = (
        [torch.empty(0), torch.empty(0)],
        [torch.empty(3, device="meta"), torch.empty(3, device="meta")],
    )
    lazy = [nn.LazyLinear(3).weight, nn.LazyLinear(3).weight]
    for first, second in (empty, meta, lazy):
        assert storage(first) != storage(second)
        assert storage(first) == storage(first)
        assert overlap(first, first)
        assert not overlap(first, second)


def test_weights_side_by_side_in_one_storage_are_not_tied() -> None:
    model = nn.Sequential(nn.Linear(11, 7), nn.Linear(7, 5))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    assert [layer.method for layer in rf.plan(model, rf.Ranks(2)).layers] == ["svd", "svd"]
