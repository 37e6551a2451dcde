"""A compressed model does what its original does, apart from what replacements approximate."""

import copy
import functools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

import rankfold as rf
from rankfold.plugins.hookspecs import ParameterRule
from rankfold.plugins.registry import registry

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))
DIFFERS = "once it is replaced the model computes something else"


class Net(nn.Module):
    """Two layers, and what is done with them."""

    def __init__(self, use: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 7)
        vars(self)["use"] = use
        vars(self.a)["gain"] = SimpleNamespace(value=3.0)

    def forward(self, x: torch.Tensor) -> Any:
        return self.use(self, x)


@functools.singledispatch
def dispatched(layer: Any, x: torch.Tensor) -> Any:
    return layer(x)


@dispatched.register
def _(layer: nn.Linear, x: torch.Tensor) -> Any:
    return torch.relu(layer(x))


def kind_of(layer: nn.Module) -> str:
    match layer:
        case nn.Linear():
            return "linear"
    return "other"


def gain_of(layer: Any) -> float:
    return layer.gain.value if hasattr(layer, "gain") else 1.0


def parameters_of(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight, layer.bias)


def in_a_thread(net: Any, x: torch.Tensor) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return net.b(pool.submit(linear, net.a, x).result())


def with_gradient(net: Any, x: torch.Tensor) -> Any:
    with torch.enable_grad():
        loss = net.b(net.a(x)).square().sum()
        (gradient,) = torch.autograd.grad(loss, net.a.weight)
    return net.b(net.a(x)) + gradient.mean()


def scale_of(layer: Any) -> float:
    return float(layer.kernel_scale)


OTHERWISE: dict[str, tuple[Callable[[Any, torch.Tensor], Any], set[str]]] = {
    "class": (lambda n, x: n.b(n.a(x)) * (2 if kind_of(n.a) == "linear" else 1), {"a"}),
    "either class": (
        lambda n, x: n.b(n.a(x)) * (2 if "linear" in map(kind_of, (n.a, n.b)) else 1),
        {"a", "b"},
    ),
    "single dispatch": (lambda n, x: n.b(dispatched(n.a, x)), {"a"}),
    "object on the layer": (lambda n, x: n.b(n.a(x)) * gain_of(n.a), {"a"}),
    "number of parameters": (lambda n, x: n.b(n.a(x)) / parameters_of(n), {"a", "b"}),
    "number of modules": (lambda n, x: n.b(n.a(x)) / len(list(n.modules())), {"a", "b"}),
    "class of the weight": (
        lambda n, x: n.b(n.a(x)) * (2 if type(n.a.weight) is nn.Parameter else 1),
        {"a"},
    ),
    "shape of an output": (
        lambda n, x: n.b(n.a(x))[: 5 if kind_of(n.a) == "linear" else 4],
        {"a"},
    ),
    "whole numbers": (lambda n, x: (n.b(n.a(x)), torch.tensor(parameters_of(n))), {"a", "b"}),
    "numbers that are none": (
        lambda n, x: n.b(n.a(x)) * (1.0 if kind_of(n.a) == "linear" else torch.nan),
        {"a"},
    ),
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("case", OTHERWISE)
def test_layers_without_which_the_model_computes_something_else_are_left_alone(
    case: str, inplace: bool
) -> None:
    use, expected = OTHERWISE[case]
    model = Net(use).eval()
    before = copy.deepcopy(model)(X)
    small = rf.compress(model, rf.Ranks("full"), inputs=X, inplace=inplace)
    reasons = {layer.path: layer.reason for layer in small.plan.layers if not layer.method}
    assert reasons.keys() == expected
    assert all(reason.startswith(DIFFERS) for reason in reasons.values())
    torch.testing.assert_close(small.model(X), before, equal_nan=True)


FAILING: dict[str, tuple[Callable[[Any, torch.Tensor], Any], str]] = {
    "gradient by the weight": (with_gradient, "the values of its weight are needed by 'grad'"),
    "weight in a thread": (in_a_thread, "the values of its weight are needed by 'linear'"),
    "address": (lambda n, x: n.b(n.a(x)) + 0 * n.a.weight.data_ptr(), "needed by 'data_ptr'"),
    "array": (lambda n, x: n.b(n.a(x)) * n.a.weight.detach().numpy().mean(), "by 'numpy'"),
    "bias": (lambda n, x: n.b(n.a(x)) + 0 * n.a.bias.data_ptr(), "the values of its bias are"),
    "behind another error": (
        lambda n, x: n.b(n.a(x)) + wrapped(n.a.weight),
        "the values of its weight are needed by 'data_ptr'",
    ),
    "attribute": (
        lambda n, x: n.b(n.a(x)) * scale_of(n.a),
        "once it is replaced the model fails with AttributeError: ",
    ),
}


def wrapped(weight: torch.Tensor) -> float:
    try:
        return 0.0 * weight.data_ptr()
    except ValueError as error:
        raise LookupError("no address") from error


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("case", FAILING)
def test_a_layer_without_which_the_model_fails_does_not_end_the_call(
    case: str, inplace: bool
) -> None:
    use, reason = FAILING[case]
    model = Net(use).eval()
    model.a.kernel_scale = torch.tensor(2.0)
    before = copy.deepcopy(model)(X)
    small = rf.compress(model, rf.Ranks("full"), inputs=X, inplace=inplace)
    assert reason in small.plan["a"].reason
    assert small.plan["b"].method == "svd"
    torch.testing.assert_close(small.model(X), before)


def test_all_layers_whose_values_are_needed_are_left_alone_at_once() -> None:
    runs: list[int] = []

    def use(net: Any, x: torch.Tensor) -> Any:
        runs.append(1)
        return net.b(net.a(x)) + 0 * (net.a.weight.data_ptr() + net.b.bias.data_ptr())

    plan = rf.compress(Net(use), rf.Ranks(2), inputs=X).plan
    assert ["data_ptr" in layer.reason for layer in plan.layers] == [True, True]
    # The trace, the result, the original, the result without the first and without both, and the
    # copy without any replacement.
    assert len(runs) == 6


def test_a_result_that_does_what_the_model_does_is_run_once() -> None:
    runs: list[int] = []

    def use(net: Any, x: torch.Tensor) -> Any:
        runs.append(1)
        return net.b(net.a(x))

    assert rf.compress(Net(use), rf.Ranks(2), inputs=X).plan["a"].method == "svd"
    assert len(runs) == 2


COUNTER: list[int] = []


def counted(net: Any, x: torch.Tensor) -> Any:
    COUNTER.append(1)
    return net.b(net.a(x)) + len(COUNTER)


def alternating(net: Any, x: torch.Tensor) -> Any:
    COUNTER.append(1)
    return net.b(net.a(x)) + len(COUNTER) % 2


def at_random(draw: Callable[[], float]) -> Callable[[Any, torch.Tensor], Any]:
    return lambda net, x: net.b(net.a(x) if draw() < 0.5 else x)


def padded(net: Any, x: torch.Tensor) -> torch.Tensor:
    COUNTER.append(1)
    return torch.cat([net.b(net.a(x)), torch.full((5, 1), float(len(COUNTER) > 1))], 1)


GENERATOR = torch.Generator()
UNSTEADY: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "drawn anew": lambda n, x: n.b(n.a(x)) + torch.randn(7, generator=GENERATOR),
    "counter": counted,
    "alternating": alternating,
    "another the second time": padded,
    "a branch at random": at_random(random.random),
    "a branch at random, by NumPy": at_random(np.random.rand),
    "drawn alike": lambda n, x: n.b(F.dropout(n.a(x), 0.5, training=True)),
    "not a number": lambda n, x: n.b(n.a(x)) / torch.zeros(7).log().mul(0),
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("case", UNSTEADY)
def test_outputs_that_are_others_each_time_keep_no_layer_from_being_replaced(
    case: str, inplace: bool
) -> None:
    COUNTER.clear()
    for seed in range(8):
        random.seed(seed)
        np.random.seed(seed)
        small = rf.compress(Net(UNSTEADY[case]).eval(), rf.Ranks(2), inputs=X, inplace=inplace)
        assert [layer.method for layer in small.plan.layers] == ["svd", "svd"]


class Odd(Net):
    """Copies give something else."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: net.b(net.a(x)) + net.shift)
        self.shift = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Odd":
        copied = memo[id(self)] = Odd()
        vars(copied).update(copy.deepcopy(vars(self), memo))
        copied.shift = 1.0
        return copied


def test_a_copy_that_differs_by_itself_is_refused_with_the_remedy() -> None:
    with pytest.raises(rf.RankfoldError, match=r"without any replacement.*inplace=True"):
        rf.compress(Odd(), rf.Ranks(2), inputs=X)
    assert rf.compress(Odd(), rf.Ranks(2), inputs=X, inplace=True).plan["a"].method == "svd"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_dtype_are_compared(dtype: torch.dtype) -> None:
    model = Net(OTHERWISE["class"][0]).to(dtype).eval()
    plan = rf.compress(model, rf.Ranks(2), inputs=X.to(dtype)).plan
    assert plan["a"].reason.startswith(DIFFERS)
    assert plan["b"].method == "svd"


class Bank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix


@pytest.mark.parametrize("inplace", [True, False])
def test_a_parameter_that_is_a_product_computes_as_before_in_the_check(
    inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = ParameterRule("torch", f"{Bank.__module__}:Bank", ("matrix",))
    monkeypatch.setattr(registry(), "parameter_rules", [rule])
    model = Net(lambda net, x: net.b(net.bank(net.a(x))))
    model.bank = Bank()
    small = rf.compress(model, rf.Ranks(2), inputs=X, inplace=inplace)
    assert {layer.method for layer in small.plan.layers} == {"svd"}
    model = Net(lambda net, x: net.b(net.bank(net.a(x))) / len(list(net.bank.modules())))
    model.bank = Bank()
    plan = rf.compress(model, rf.Ranks(2), inputs=X, inplace=inplace).plan
    assert plan["bank.matrix"].reason.startswith(DIFFERS)
    assert plan["a"].method == plan["b"].method == "svd"
