"""Layers whose output is an output of the model, as a trace shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

import rankfold as rf
from rankfold_torch.adapter import TorchAdapter

Forward = Callable[[Any, torch.Tensor], Any]


class Heads(nn.Module):
    """A body, two layers of which some function is returned."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm = nn.Linear(11, 13), nn.LayerNorm(7)
        self.a, self.b = nn.Linear(13, 7), nn.Linear(13, 7)
        self.gain = nn.Parameter(torch.rand(7))
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.conv = nn.Conv1d(1, 3, 2)
        self.table = nn.Parameter(torch.rand(7, 5))
        self.pairs = nn.Parameter(torch.rand(7, 7))
        self.gains, self.batch_norm = nn.Parameter(torch.rand(3)), nn.BatchNorm1d(7)
        self.square = nn.Linear(7, 7)
        self.given = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.given(self, self.body(x).relu())


class Pair(NamedTuple):
    logits: torch.Tensor
    past_key_values: torch.Tensor


@dataclasses.dataclass
class Output:
    scores: torch.Tensor
    boxes: list[torch.Tensor]


class Record:
    def __init__(self, scores: torch.Tensor, boxes: torch.Tensor) -> None:
        self.scores, self.boxes, self.origin = scores, boxes, self


def filled(m: Any, h: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(h), 14)
    out[:, :7] = m.a(h)
    out[:, 7:] = m.b(h).sigmoid()
    out[:, 0].mul_(2)
    return out


class Slots:
    __slots__ = ("scores",)

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores


class LooksUp:
    def __init__(self, scores: torch.Tensor) -> None:
        vars(self)["values"] = {"scores": scores}

    def __getattr__(self, name: str) -> Any:
        return vars(self)["values"][name]  # no AttributeError


def in_place(m: Any, h: torch.Tensor) -> torch.Tensor:
    y = m.a(h)
    y += m.b(h)
    return y  # type: ignore[no-any-return]  # modules are Any


BOTH: dict[str, Forward] = {
    "dict": lambda m, h: {"a": m.a(h), "b": [m.b(h)]},
    "dataclass": lambda m, h: Output(m.a(h), [m.b(h)]),
    "a record": lambda m, h: [Record(m.a(h), m.b(h))],
    "concatenated": lambda m, h: torch.cat([m.a(h), m.b(h).exp()], 1),
    "filled in": filled,
    "a sum of two": lambda m, h: m.a(h) + m.b(h),
    "a sum in place": in_place,
    "a value and advantages": lambda m, h: m.a(h)[:, :1] + m.b(h) - m.b(h).mean(1, keepdim=True),
    "a mask": lambda m, h: m.a(h).sigmoid() * m.b(h),
    "the greater": lambda m, h: torch.maximum(m.a(h), m.b(h)),
    "the mean of a stack": lambda m, h: torch.stack([m.a(h), m.b(h)]).mean(0),
}
ONE: dict[str, Forward] = {
    "softmax": lambda m, h: m.a(h).softmax(-1),
    "log softmax": lambda m, h: m.a(h).log_softmax(-1),
    "scaled": lambda m, h: m.a(h) / m.temperature,
    "a bias added": lambda m, h: m.a(h) + m.gain,
    "reshaped and cast": lambda m, h: m.a(h)[:, 1:].reshape(-1, 2, 3).transpose(0, 1).double(),
    "pooled": lambda m, h: m.a(h)[None].mean(1).squeeze(),
    "normalized": lambda m, h: functional.normalize(m.a(h), dim=-1),
    "interpolated": lambda m, h: functional.interpolate(m.a(h)[None], scale_factor=2.0),
    "masked": lambda m, h: m.a(h).masked_fill(h[:, :7] > 0, -1e9),
    "chosen": lambda m, h: m.a(h).topk(2).indices,
    "relu in place": lambda m, h: functional.relu_(m.a(h)),
    "dropped out": lambda m, h: functional.dropout(m.a(h), training=m.training),
    "beside a cache": lambda m, h: Pair(m.a(h), m.b(h)),
    "a normalization with weights": lambda m, h: m.norm(m.a(h)),
    "a batch normalization": lambda m, h: m.batch_norm(m.a(h)),
    "a gain for each channel": lambda m, h: m.a(h) * m.gain,
    "a gain picked from several": lambda m, h: m.a(h) * m.gains[1],
    "two calls averaged": lambda m, h: (m.a(h) + m.a(-h)) / 2,
    "refined step by step": lambda m, h: (lambda y: y + m.a(h + y.mean()))(m.a(h)),
    "scores of pairs": lambda m, h: (m.a(h)[:, :, None] + m.pairs).amax(1),
    "beside a penalty": lambda m, h: {"y": m.a(h), "penalty": m.b(h).square().mean()},
    "a loss alone": lambda m, h: functional.cross_entropy(m.a(h), torch.zeros(3).long()),
    "an object that looks up": lambda m, h: LooksUp(m.a(h)),
    "slots": lambda m, h: Slots(m.a(h)),
    "a list of numbers": lambda m, h: m.a(h).tolist(),
    "a NumPy array": lambda m, h: m.a(h).detach().numpy(),
    "sparse": lambda m, h: m.a(h).to_sparse(),
    "ragged": lambda m, h: torch.nested.as_nested_tensor(list(m.a(h)), layout=torch.jagged),
}
NONE: dict[str, Forward] = {
    "a matrix of the model": lambda m, h: m.a(h) @ m.table,
    "rows of a matrix of the model": lambda m, h: (m.a(h)[:, :, None] * m.table).sum(1),
    "a product of two": lambda m, h: m.a(h) @ m.b(h).T,
    "a link of a residual chain": lambda m, h: (lambda y: y + m.square(y.relu()))(m.a(h)),
    "a sum with what is mixed": lambda m, h: m.a(h) + (m.b(h) @ m.table).mean(1, keepdim=True),
}


def outputs(forward: Forward) -> set[str]:
    found = TorchAdapter().trace(Heads(forward), torch.rand(3, 11)).outputs
    assert found is not None
    return set(found)


@pytest.mark.parametrize("forward", BOTH.values(), ids=BOTH)
def test_several_heads_are_outputs(forward: Forward) -> None:
    assert outputs(forward) == {"a", "b"}


@pytest.mark.parametrize("forward", ONE.values(), ids=ONE)
def test_what_is_done_to_one_value_leaves_it_an_output(forward: Forward) -> None:
    assert outputs(forward) == {"a"}


@pytest.mark.parametrize("forward", NONE.values(), ids=NONE)
def test_other_activations_and_weights_end_it(forward: Forward) -> None:
    assert outputs(forward) == set()


def test_a_layer_between_is_the_output() -> None:
    assert outputs(lambda m, h: m.conv(m.a(h)[:, None])) == {"conv"}


def test_compiled_and_checkpointed_parts_are_seen_through() -> None:
    model = Heads(lambda m, h: m.a(h))
    model.a = torch.compile(model.a)
    found = TorchAdapter().trace(model, torch.rand(3, 11)).outputs
    assert found == {"a._orig_mod"}

    def checkpointed(m: Any, h: torch.Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(m.a, h, use_reentrant=False)

    assert outputs(checkpointed) == {"a"}


def trained() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A classifier of ten noisy prototypes, which it tells apart; its examples and their labels."""
    torch.manual_seed(0)
    prototypes = torch.randn(10, 40)
    labels = torch.arange(10).repeat(40)
    x = prototypes[labels] + 0.5 * torch.randn(400, 40)
    model = nn.Sequential(
        nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, 80), nn.ReLU(), nn.Linear(80, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    with torch.no_grad():  # all classes alike, so that nothing changes but what EVBMF makes of it
        model[4].weight += torch.randn(80)
    return model, x, labels


@pytest.mark.parametrize("traced", [False, True])
def test_a_classifier_still_tells_its_classes_apart(traced: bool) -> None:
    model, x, labels = trained()

    def accuracy(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(x).argmax(1) == labels).float().mean())

    inputs = x[:1] if traced else None
    assert accuracy(model) > 0.99
    small = rf.compress(model, rf.VBMF(), inputs=inputs)
    assert small.plan["2"].method == "svd"
    assert small.plan["4"].method is None
    assert accuracy(small.model) > 0.9
    ruined = rf.compress(model, rf.VBMF(), inputs=inputs, include="*")
    assert ruined.plan["4"].ranks == (1,)
    assert "EVBMF had 10 rows to go by" in ruined.plan["4"].reason
    assert accuracy(ruined.model) < 0.5


def test_a_plan_that_compresses_a_head_is_obeyed() -> None:
    model, x, _ = trained()
    plan = rf.plan(model, rf.Energy(0.5), inputs=x[:1], include="4")
    assert rf.apply(model, plan).plan["4"].method == "svd"
