"""Nothing stale stays at work: layers that something holds besides, and copies of odd classes."""

import functools
import itertools
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf

X = torch.randn(5, 12)
REGISTRY: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Record:
    layer: Any


class Slotted:
    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


class Wrapper(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


def keyword(layer: nn.Module) -> Callable[..., Any]:
    def call(x: torch.Tensor, *, held: Any = layer) -> Any:
        return held(x)

    return call


def attribute(layer: nn.Module) -> Callable[..., Any]:
    def call(x: torch.Tensor) -> Any:
        return call.layer(x)  # type: ignore[attr-defined]

    call.layer = layer  # type: ignore[attr-defined]
    return call


def local_class(layer: nn.Module) -> Any:
    class Caller:
        def __call__(self, x: torch.Tensor) -> Any:
            return layer(x)

    return Caller()


def generator(layer: nn.Module) -> Any:
    def results() -> Any:
        x = yield
        while True:
            x = yield layer(x)

    started = results()
    next(started)
    return started


def registered(layer: nn.Module) -> str:
    REGISTRY["layer"] = layer
    return "layer"


def calls(held: Any, x: torch.Tensor) -> Any:
    return held(x)


Holder = tuple[Callable[[nn.Module], Any], Callable[[Any, torch.Tensor], Any]]
EXCHANGED: dict[str, Holder] = {
    "namespace": (lambda a: SimpleNamespace(layer=a), lambda h, x: h.layer(x)),
    "frozen dataclass": (Record, lambda h, x: h.layer(x)),
    "partial": (lambda a: functools.partial(lambda f, x: f(x), a), calls),
    "partial of it": (lambda a: functools.partial(a), calls),
    "partial by keyword": (lambda a: functools.partial(lambda x, f: f(x), f=a), calls),
    "set": (lambda a: {a}, lambda h, x: next(iter(h))(x)),
    "frozenset": (lambda a: frozenset({a}), lambda h, x: next(iter(h))(x)),
    "deque": (lambda a: deque([a]), lambda h, x: h[0](x)),
    "module in a list": (lambda a: [Wrapper(a)], lambda h, x: h[0](x)),
}
COPIED: dict[str, Holder] = {
    "slots": (Slotted, lambda h, x: h.layer(x)),
    "key": (lambda a: {a: 1}, lambda h, x: next(iter(h))(x)),
    "bound call": (lambda a: a.__call__, calls),
    "bound to it": (lambda a: MethodType(lambda layer, x: layer(x), a), calls),
    "iterator": (lambda a: itertools.cycle([a]), lambda h, x: next(h)(x)),
}
SHARED: dict[str, Holder] = {
    "closure": (lambda a: lambda x: a(x), calls),
    "closure of a bound method": (lambda a: (lambda f: lambda x: f(x))(a.__call__), calls),
    "default": (lambda a: lambda x, f=a: f(x), calls),
    "keyword default": (keyword, calls),
    "attribute of a function": (attribute, calls),
    "list of functions": (lambda a: [lambda x: a(x)], lambda h, x: h[0](x)),
    "dict of functions": (lambda a: {"f": lambda x: a(x)}, lambda h, x: h["f"](x)),
    "deque of functions": (lambda a: deque([lambda x: a(x)]), lambda h, x: h[0](x)),
    "cached function": (lambda a: functools.cache(lambda: a), lambda h, x: h()(x)),
    "weak reference": (weakref.ref, lambda h, x: h()(x)),
    "weak set": (lambda a: weakref.WeakSet([a]), lambda h, x: next(iter(h))(x)),
    "class in a function": (local_class, calls),
    "generator": (generator, lambda h, x: h.send(x)),
    "weights": (
        lambda a: functools.partial(lambda t, x: nn.functional.linear(x, *t), (a.weight, a.bias)),
        calls,
    ),
    "view of its weight": (
        lambda a: [a.weight.data.T],
        lambda h, x: x @ h[0],
    ),
}
HOLDERS = {**EXCHANGED, **COPIED, **SHARED}


class Net(nn.Module):
    """Calls a layer by what else holds it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 13), nn.Linear(13, 7)
        make, self.use = HOLDERS[kind]
        vars(self)["held"] = make(self.a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.use(self.held, x))


def trained(small: rf.Compressed) -> bool:
    """Whether a backward pass reaches every parameter of the model."""
    small.model(X).sum().backward()
    return all(p.grad is not None for p in small.model.parameters())


@pytest.mark.parametrize("inputs", [None, X], ids=["untraced", "traced"])
@pytest.mark.parametrize("kind", HOLDERS)
def test_in_place_no_replaced_layer_stays_at_work(kind: str, inputs: torch.Tensor | None) -> None:
    model = Net(kind)
    layer = model.a
    small = rf.compress(model, rf.Ranks(2), inputs=inputs, include="a", inplace=True)
    if kind in EXCHANGED:
        assert small.plan["a"].method == "svd"
    else:
        assert model.a is layer
        reason = small.plan["a"].reason
        used = inputs is not None and reason.endswith("is read from outside the layer")
        assert used or "held by 'held' (" in reason
    assert trained(small) or kind == "view of its weight"


@pytest.mark.parametrize("kind", {**EXCHANGED, **COPIED})
def test_a_copy_holds_the_replacement_wherever_the_layer_was_held(kind: str) -> None:
    model = Net(kind)
    small = rf.compress(model, rf.Ranks(2), inputs=X, include="a")
    assert small.plan["a"].method == "svd"
    assert trained(small)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("inputs", [None, X], ids=["untraced", "traced"])
@pytest.mark.parametrize("kind", SHARED)
def test_no_copy_goes_on_using_layers_of_the_model(kind: str, inputs: torch.Tensor | None) -> None:
    if "weight" in kind:  # it is copied, but is not what takes the layer's place
        assert "held by" in rf.compress(Net(kind), rf.Ranks(2), include="a").plan["a"].reason
        return
    for include in ("a", "b"):
        with pytest.raises(rf.RankfoldError, match="pass inplace=True"):
            rf.compress(Net(kind), rf.Ranks(2), inputs=inputs, include=include)


def test_the_other_layers_are_replaced() -> None:
    small = rf.compress(Net("closure"), rf.Ranks(2), inputs=X, inplace=True)
    assert [layer.method for layer in small.plan.layers] == [None, "svd"]
    plan = rf.plan(Net("closure"), rf.Ranks(2), inputs=X)
    assert plan["a"].method == "svd"
    applied = rf.apply(Net("closure"), plan, inplace=True)
    assert [layer.method for layer in applied.plan.layers] == [None, "svd"]
    assert trained(applied)


def test_a_budget_is_kept_without_the_layer_that_is_held() -> None:
    small = rf.compress(Net("closure"), rf.Budget(params=0.9), inputs=X, inplace=True)
    assert small.plan["a"].method is None
    assert small.plan.model_params[1] == sum(p.numel() for p in small.model.parameters())
    assert small.plan.model_params[1] <= 0.9 * small.plan.model_params[0]


def test_with_data_a_model_that_cannot_be_copied_is_changed_in_place() -> None:
    data = torch.randn(64, 12)
    small = rf.compress(Net("closure"), rf.Ratio(0.5), inputs=X, calibration=[data], inplace=True)
    assert [layer.method for layer in small.plan.layers] == [None, "svd"]
    assert small.plan.loss is None
    assert any("not measured" in note and "'held'" in note for note in small.plan.notes)


def hooked() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(12, 13), nn.ReLU(), nn.Linear(13, 7))
    model.extra = nn.Linear(12, 14)
    layer = model.extra
    model[1].register_forward_hook(lambda module, args, output: output + layer(X).mean())
    return model


def test_a_hook_that_calls_another_layer_is_seen() -> None:
    with pytest.raises(rf.RankfoldError, match=r"'1._forward_hooks' .* 'extra' by closure"):
        rf.compress(hooked(), rf.Ranks(2))
    small = rf.compress(hooked(), rf.Ranks(2), inplace=True)
    assert "held by '1._forward_hooks'" in small.plan["extra"].reason
    assert [layer.method for layer in small.plan.layers] == ["svd", "svd", None]


class FromRegistry(nn.Module):
    """Calls a layer by a name that a variable of the Python module keeps it under."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 13), nn.Linear(13, 7)
        REGISTRY["layer"] = self.a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(from_registry()(x))


def from_registry() -> nn.Module:
    return REGISTRY["layer"]


CURRENT: ContextVar[nn.Module] = ContextVar("CURRENT")


class FromClass(FromRegistry):
    """Holds its layer in a list of the class."""

    layers: ClassVar[list[nn.Module]] = []

    def __init__(self) -> None:
        super().__init__()
        type(self).layers[:] = [self.a]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.layers[0](x))


class FromGlobal(FromRegistry):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(REGISTRY["layer"](x))


class FromContext(FromRegistry):
    def __init__(self) -> None:
        super().__init__()
        CURRENT.set(self.a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(CURRENT.get()(x))


class FromArray(FromRegistry):
    def __init__(self) -> None:
        super().__init__()
        self.layers = np.empty(1, dtype=object)
        self.layers[0] = self.a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.layers[0](x))


@pytest.mark.parametrize("make", [FromClass, FromGlobal, FromContext, FromArray])
def test_without_a_run_too_a_layer_held_outside_the_modules_is_left_alone(make: Any) -> None:
    model = make()
    small = rf.compress(model, rf.Ranks(2), inplace=True)
    assert "it is also held by" in small.plan["a"].reason
    assert small.plan["b"].method == "svd"
    REGISTRY.clear()


@pytest.mark.parametrize("make", [FromClass, FromGlobal, FromContext])
def test_no_copy_computes_with_a_layer_of_the_original_held_outside_its_modules(make: Any) -> None:
    with pytest.raises(rf.RankfoldError, match="holds the model's 'a'"):
        rf.compress(make(), rf.Ranks(2))
    REGISTRY.clear()


def test_what_nothing_in_the_model_holds_shows_when_the_result_is_run() -> None:
    with pytest.raises(rf.RankfoldError, match="goes on calling the model's own 'a'"):
        rf.compress(FromRegistry(), rf.Ranks(2), inputs=X)
    model = FromRegistry()
    small = rf.compress(model, rf.Ranks(2), inputs=X, inplace=True)
    assert small.plan["a"].reason == "something holds it besides and goes on calling it"
    assert small.plan["b"].method == "svd"
    assert model.a is REGISTRY["layer"]


class Chooses(nn.Module):
    """Calls one of two layers, by its values; and one of them less once it has cached it."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.a, self.b = nn.Linear(12, 14), nn.Linear(12, 13), nn.Linear(12, 13)
        self.fixed = nn.Linear(12, 13)
        self.cache: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> Any:
        if self.cache is None:
            self.cache = self.fixed(torch.ones(12))
        scores = self.scores(x)
        chosen = [self.a if score.sum() > 0 else self.b for score in scores]
        rows = [layer(row) for layer, row in zip(chosen, x, strict=True)]
        return torch.stack(rows) + self.cache


@pytest.mark.parametrize("inplace", [True, False])
def test_calls_that_depend_on_values_or_on_a_cache_keep_no_layer_from_being_replaced(
    inplace: bool,
) -> None:
    x = torch.randn(40, 12)
    small = rf.compress(Chooses().eval(), rf.Ranks(1), inputs=x, inplace=inplace)
    assert {layer.method for layer in small.plan.layers} == {"svd"}


class AsksForTheClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 12), nn.Linear(12, 12)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return run(self, x)


def run(model: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in model.layers:
        x = layer(x) if type(layer) is nn.Linear else x
    return x


class AsksForTheName(AsksForTheClass):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * (3 if layer.__class__.__name__ == "Linear" else 1)
        return x


class GetsTheName(AsksForTheClass):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * (3 if "Linear" in layer._get_name() else 1)
        return x


class MatchesTheClass(AsksForTheClass):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            match x, layer:
                case _, nn.Linear() | nn.Bilinear():
                    x = torch.relu(layer(x))
                case _:
                    x = layer(x)
        return x


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("cls", [AsksForTheName, GetsTheName, MatchesTheClass])
def test_a_layer_whose_class_is_told_apart_by_its_name_is_left_alone(
    cls: type[nn.Module], traced: bool
) -> None:
    plan = rf.plan(cls(), rf.Ranks(2), inputs=X if traced else None)
    reasons = {layer.reason for layer in plan.layers}
    assert reasons == {f"its class is asked for by {cls.__name__}.forward"}


@pytest.mark.parametrize("inplace", [True, False])
def test_a_layer_whose_replacement_would_not_be_called_is_left_alone(inplace: bool) -> None:
    model = AsksForTheClass()
    small = rf.compress(model, rf.Ranks(2), inputs=X, inplace=inplace)
    reasons = {layer.reason for layer in small.plan.layers}
    assert reasons == {"in its place a module would be called 0 times, not 1"}
    torch.testing.assert_close(small.model(X), model(X))


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_what_ends_the_run_of_the_result_leaves_the_model_as_it_was(
    fault: type[BaseException], untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    class Fails(nn.Sequential):
        def forward(self, x: torch.Tensor) -> Any:
            if run_of(self) == 2:
                raise fault
            return super().forward(x)

    runs: list[nn.Module] = []

    def run_of(module: nn.Module) -> int:
        runs.append(module)
        return len(runs)

    model = Fails(nn.Linear(12, 13), nn.ReLU(), nn.Linear(13, 7))
    error = fault if fault is KeyboardInterrupt else rf.RankfoldError
    with untouched(model), pytest.raises(error):
        rf.compress(model, rf.Ranks(2), inputs=X, inplace=True)


def test_a_change_that_fails_leaves_the_model_as_it_was(
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    class Frozen(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if not isinstance(value, nn.Linear):
                raise TypeError("frozen")
            super().__setitem__(key, value)

    model = nn.Sequential(nn.Linear(12, 13), nn.ReLU(), nn.Linear(13, 7))
    model.named = Frozen(last=model[2])
    with untouched(model), pytest.raises(rf.RankfoldError, match="frozen"):
        rf.compress(model, rf.Ranks(2), inplace=True)
    assert model.named["last"] is model[2]
