"""A model that changes itself when it runs is as it was after every call of rankfold."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf

SIZE = 12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.scale = nn.Parameter(torch.ones(SIZE))
        self.register_buffer("frequencies", torch.ones(SIZE))
        self.longest, self.rescaled = 0, False
        self.cache: dict[str, Any] = {}
        self.sizes: list[int] = []

    def change(self, x: torch.Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.change(x)
        return self.b(self.a(x * self.scale).relu() * self.frequencies)


class GrowsWithTheInput(Net):
    """Like rotary embeddings whose frequencies depend on the longest input so far."""

    def change(self, x: torch.Tensor) -> None:
        if len(x) > self.longest:
            self.frequencies = self.frequencies / len(x)
            self.longest = len(x)


class RescalesOnce(Net):
    """Like RWKV in its first run in eval mode."""

    def change(self, x: torch.Tensor) -> None:
        if not self.rescaled:
            with torch.no_grad():
                self.scale.div_(2.0)
                self.b.bias.data.add_(1.0)
                torch.mul(self.b.weight, 0.5, out=self.b.weight)
                torch._foreach_mul_([self.a.bias], 0.5)
            self.rescaled = True


class MakesAnew(Net):
    """Like a table of positions that is too short."""

    def change(self, x: torch.Tensor) -> None:
        if not hasattr(self, "grown"):
            self.scale = nn.Parameter(torch.full((SIZE,), 3.0))
            self.grown = True


class FillsACache(Net):
    def change(self, x: torch.Tensor) -> None:
        self.cache.setdefault("scale", self.scale.detach() * 2)
        self.sizes.append(len(x))
        self.frequencies.fill_(float(len(self.sizes)))


def everything(model: nn.Module) -> dict[str, Any]:
    plain = {
        f"{path}.{name}": repr(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
    }
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = {name: id(value) for name, value in model.named_parameters()}
    return {"plain": plain, "parameters": parameters, **tensors}


CALLS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "plan": lambda model, x: rf.plan(model, rf.Ranks(3), inputs=x),
    "compress": lambda model, x: rf.compress(model, rf.Ranks(3), inputs=x),
    "calibrated": lambda model, x: rf.compress(
        model, rf.Ranks(3), inputs=x, calibration=[x, x * 0.5]
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cls", [GrowsWithTheInput, RescalesOnce, MakesAnew, FillsACache])
def test_the_model_is_as_it_was(cls: type[nn.Module], call: str) -> None:
    model, x = cls(), torch.randn(9, SIZE)
    before = everything(model)
    CALLS[call](model, x)
    after = everything(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else None
        assert same if same is not None else value == after[name], name


@pytest.mark.parametrize("cls", [GrowsWithTheInput, RescalesOnce, MakesAnew, FillsACache])
def test_the_copy_begins_where_the_model_did(
    cls: type[nn.Module], tmp_path: Any, distance: Callable[..., float]
) -> None:
    torch.manual_seed(0)
    model, x = cls(), torch.randn(9, SIZE)
    small = rf.compress(model, rf.Ranks("full"), inputs=x, methods="svd", include="a")
    small.save(tmp_path / "saved")
    torch.manual_seed(1)
    loaded = rf.load(cls(), tmp_path / "saved")
    expected = model.eval()(x)
    assert distance(small.model.eval()(x), expected) < 1e-5
    assert distance(loaded.eval()(x), expected) < 1e-5


class MadeAtTheFirstCall(Net):
    """Registers a layer when it is first called, under a name that `__init__` sets to None."""

    def __init__(self) -> None:
        super().__init__()
        self.late: Any = None

    def change(self, x: torch.Tensor) -> None:
        if self.late is None:
            self.late = nn.Linear(SIZE, SIZE)
            self.add_module("later", nn.Linear(SIZE, SIZE))


@pytest.mark.parametrize("calibrated", [False, True])
def test_layers_made_at_the_first_call_are_gone_afterwards(calibrated: bool) -> None:
    model, x = MadeAtTheFirstCall(), torch.randn(16, SIZE)
    attributes, parts = sorted(vars(model)), list(model._modules)
    data = {"calibration": [x]} if calibrated else {}
    small = rf.compress(model, rf.Ranks(3), inputs=x, **data)
    assert len(small.plan.replaced) == 2
    assert (sorted(vars(model)), list(model._modules)) == (attributes, parts)
    assert model.late is None
    assert model(x).shape == small.model(x).shape
