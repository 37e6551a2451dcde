"""Copies hold what the model holds, however its classes have themselves copied."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

import rankfold as rf

X = torch.randn(6, 12)


class Body(nn.Module):
    """Layers, a buffer that is not stored, and one that changes what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(12, 13), nn.BatchNorm1d(13), nn.Linear(13, 7)
        self.register_buffer("shift", torch.full((7,), 3.0), persistent=False)
        self.unused = nn.Linear(7, 5)
        self.a.bias.requires_grad_(False)
        self.norm.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x))) + self.shift


class Trains(fx.GraphModule):
    """Is in training mode when it is made, as torchvision's feature extractors are."""

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "Traced") -> None:
        super().__init__(root, graph, class_name)
        self.train()


class Anew(Body):
    def __deepcopy__(self, memo: dict[int, Any]) -> "Anew":
        return Anew()


class Reduced(Body):
    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Reduced, ()


class Stateless(Body):
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # as classes with handles of their own do


def traced(kind: type[fx.GraphModule]) -> fx.GraphModule:
    body = Body()
    found = kind(body, fx.Tracer().trace(body))
    found.add_module("unused", nn.Linear(7, 5))
    return found


MODELS: dict[str, Callable[[], nn.Module]] = {
    "traced": lambda: traced(fx.GraphModule),
    "traced, training when made": lambda: traced(Trains),
    "__deepcopy__": Anew,
    "__reduce__": Reduced,
    "__setstate__": Stateless,
}


LAYERS = ("0", "1.a", "1.b", "1.unused")


def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(1)
    body = MODELS[kind]()
    body.register_forward_hook(hook)
    body.label = "a plain attribute"
    model = nn.Sequential(nn.Linear(12, 12), body).eval()
    body.norm.train()
    body.norm.weight.requires_grad_(False)
    torch.manual_seed(2)
    return model


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_modes_buffers_hooks_and_outputs_are_those_of_the_model(kind: str, inplace: bool) -> None:
    model = model_of(kind)
    modes = {path: module.training for path, module in model.named_modules()}
    state = copy.deepcopy(model[1].norm.state_dict())
    stored = {name for name, _ in model.named_buffers()} & set(model.state_dict())
    with torch.no_grad():
        body = model[1]
        y = 2 * (body.b(nn.functional.batch_norm(body.a(model[0](X)), **statistics(body))) + 3)
    small = rf.compress(model, rf.Ranks("full"), inputs=X, inplace=inplace).model
    assert all(isinstance(small.get_submodule(path), nn.Sequential) for path in LAYERS)
    assert {path: small.get_submodule(path).training for path in modes} == modes
    assert not any(part.training for path in LAYERS for part in small.get_submodule(path).modules())
    assert not small[1].a[-1].bias.requires_grad
    assert not small[1].norm.weight.requires_grad
    assert {name for name, _ in small.named_buffers()} & set(small.state_dict()) == stored
    assert all(torch.equal(small[1].norm.state_dict()[name], state[name]) for name in state)
    assert kind.startswith("__") or small[1].label == "a plain attribute"  # classes may drop these
    torch.testing.assert_close(small.eval()(X), y, atol=1e-4, rtol=1e-4)


def statistics(body: Any) -> dict[str, torch.Tensor]:
    norm = body.norm
    return {
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "weight": norm.weight,
        "bias": norm.bias,
    }


class Same(nn.Module):
    """One object in the model and in all of its copies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Same":
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_what_shares_itself_with_copies_stays_shared_and_is_left_alone() -> None:
    model = nn.Sequential(Same(), nn.Linear(12, 7))
    small = rf.compress(model, rf.Ranks(2), inputs=X)
    assert small.model[0] is model[0]
    assert small.plan["0.layer"].reason == "what holds it gives no copy of itself when it is copied"
    assert small.plan["1"].method == "svd"
    assert type(model[0].layer) is nn.Linear
