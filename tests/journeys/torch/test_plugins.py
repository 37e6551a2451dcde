"""Plugins at work on a model: what they raise and write stays with them."""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.errors import Refused
from rankfold.plugins.hookspecs import LayerRule, hookimpl
from rankfold.plugins.registry import registry
from rankfold_torch.layers import stock as torch_layers

PARTS = ("refuse", "max_ranks", "modes", "ranks", "template", "error_at_ranks", "decompose")
POLICIES = {
    "ranks": rf.Ranks(2),
    "ratio": rf.Ratio(0.5),
    "energy": rf.Energy(0.5),
    "budget": rf.Budget(params=0.9),
}


class OfNoException(BaseException):
    pass


class TextlessError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


def raises(error: BaseException) -> Callable[..., Any]:
    def fault(*anything: Any, **options: Any) -> Any:
        raise error

    return fault


def gives(value: Any) -> Callable[..., Any]:
    return lambda *anything, **options: value


FAULTS: dict[str, Callable[..., Any]] = {
    "exits": raises(SystemExit(6)),
    "of no exception": raises(OfNoException()),
    "without a text": raises(TextlessError()),
    "gives an object": gives(object()),
    "gives texts": gives(("a", "b")),
    "gives ranks too large": gives((10**9,)),
    "gives nothing": gives(()),
}


class Faulty:
    """The SVD with another function in place of one of its methods."""

    name = "faulty"

    def __init__(self, part: str, fault: Callable[..., Any]) -> None:
        self.part, self.fault = part, fault

    def __getattr__(self, name: str) -> Any:
        return self.fault if name == self.part else getattr(registry().decompositions["svd"], name)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 5))


def values(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", PARTS)
def test_a_fault_of_a_decomposition_is_a_reason_in_the_plan(
    part: str, fault: str, policy: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry().decompositions, "faulty", Faulty(part, FAULTS[fault]))
    methods = ["faulty"] if policy != "budget" else ["faulty", "channel_svd", "svd"]
    plan = rf.plan(model, POLICIES[policy], methods=methods)
    assert all(layer.reason for layer in plan.layers if layer.method is None)
    assert rf.Plan.from_json(plan.to_json()) == plan


class Stubborn:
    """A policy that is not to be ended."""

    def allocate(self, layers: Sequence[rf.Layer]) -> Iterator[rf.Choice]:
        for _ in layers:
            try:
                yield rf.Choice("svd", (2,))
            except GeneratorExit:
                yield rf.Choice(None)


class Allocating:
    """A policy that gives something in place of its choices."""

    def __init__(self, allocate: Callable[..., Any], text: Callable[[], str] = lambda: "P") -> None:
        self.allocate, self.text = allocate, text

    def __repr__(self) -> str:
        return self.text()


def raised_while_iterated(layers: Sequence[rf.Layer]) -> Iterator[rf.Choice]:
    yield rf.Choice("svd", (2,))
    raise OfNoException


@pytest.mark.parametrize(
    "policy",
    [
        Allocating(raises(SystemExit(6))),
        Allocating(raises(TextlessError())),
        Allocating(raises(Refused("not I"))),
        Allocating(raised_while_iterated),
        Allocating(gives(None)),
        Allocating(gives([rf.Choice(["svd"], (2,))])),  # type: ignore[arg-type]
        Allocating(gives([rf.Choice("svd", (2.5,))])),  # type: ignore[arg-type]
        Allocating(gives([rf.Choice("svd", None)])),  # type: ignore[arg-type]
        Allocating(gives([rf.Choice(None, (), None)])),  # type: ignore[arg-type]
        Allocating(gives([7]), text=raises(SystemExit("no text"))),
        Stubborn(),
        type("Unreadable", (Stubborn,), {"judges": property(raises(OfNoException()))})(),
        type("Missing", (), {"allocate": property(raises(OfNoException()))})(),
    ],
)
def test_a_fault_of_a_policy_is_an_error_of_the_call(policy: Any, model: nn.Module) -> None:
    before = values(model)
    with pytest.raises(rf.RankfoldError, match="policy"):
        rf.compress(model, policy, include="*", inplace=True)
    assert same(before, values(model))


def test_choices_may_come_as_a_list_with_ranks_of_numpy(model: nn.Module) -> None:
    policy: Any = Allocating(lambda layers: [rf.Choice("svd", [np.int64(2)]) for _ in layers])  # type: ignore[arg-type]
    plan = rf.plan(model, policy, include="*")
    assert [layer.ranks for layer in plan.layers] == [(2,), (2,)]
    assert rf.Plan.from_json(plan.to_json()) == plan


def test_a_policy_without_a_repr_is_recorded_as_such(model: nn.Module) -> None:
    policy: Any = Allocating(
        lambda layers: [rf.Choice(None)] * len(layers), raises(OfNoException())
    )
    plan = rf.plan(model, policy)
    assert plan.policy == "Allocating, whose text cannot be made"
    assert all(layer.reason for layer in plan.layers)


class Scaled(nn.Linear):
    """A layer that no adapter knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


def build_exits(chain: Any, layer: nn.Module) -> nn.Module:
    raise SystemExit("built")


def read_scaled(layer: nn.Module) -> rf.Linear:
    return rf.Linear(2.0 * layer.weight.detach().numpy())  # type: ignore[operator, union-attr]


read_exits = raises(SystemExit("read"))
HERE = __name__


@pytest.mark.parametrize(
    ("read", "build"), [("read_exits", None), ("read_scaled", "build_exits")], ids=str
)
def test_a_layer_rule_that_exits_costs_its_layer(
    read: str, build: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = None if build is None else f"{HERE}:{build}"
    rule = LayerRule("torch", f"{HERE}:Scaled", f"{HERE}:{read}", made)
    monkeypatch.setattr(registry(), "rules", [rule])
    small = rf.compress(nn.Sequential(Scaled(7, 11, bias=False), nn.Linear(11, 5)), rf.Ranks(2))
    assert "SystemExit" in small.plan["0"].reason
    assert small.plan["1"].method == "svd"


def test_an_observer_that_exits_harms_nobody(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = ModuleType("exits")
    plugin.rankfold_layer_done = hookimpl(lambda report: raises(OfNoException())())  # type: ignore[attr-defined]
    registry()._manager.register(plugin, name="exits")
    monkeypatch.setitem(registry().plugins, "exits", "exits")
    monkeypatch.setattr(registry(), "problems", [])
    try:
        assert rf.compress(model, rf.Ranks(2)).plan["2"].method == "svd"
        assert {problem.stage for problem in registry().problems} == {"layer_done"}
    finally:
        registry()._manager.unregister(name="exits")


def in_numpy(array: np.ndarray) -> None:
    array /= 7.0


def in_torch(array: np.ndarray) -> None:
    torch.from_numpy(array).div_(7.0)


def made_writable(array: np.ndarray) -> None:
    array.setflags(write=True)
    array /= 7.0


class InPlace:
    """The SVD, scaling what it gets first, as numerical code does."""

    name = "in_place"

    def __init__(self, part: str, way: Callable[[np.ndarray], None], what: str) -> None:
        self.part, self.way, self.what = part, way, what

    def __getattr__(self, name: str) -> Any:
        sound = getattr(registry().decompositions["svd"], name)
        return partial_in_place(self, sound) if name == self.part else sound


def partial_in_place(plugin: InPlace, sound: Callable[..., Any]) -> Callable[..., Any]:
    def work(op: Any, *others: Any, **options: Any) -> Any:
        plugin.way(getattr(op, plugin.what))
        return sound(op, *others, **options)

    return work


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", [in_numpy, in_torch, made_writable])
@pytest.mark.parametrize("what", ["weight", "bias"])
@pytest.mark.parametrize("part", ["refuse", "modes", "template", "decompose"])
def test_a_decomposition_that_works_in_place_does_not_change_the_model(
    part: str,
    what: str,
    way: Callable[[np.ndarray], None],
    dtype: torch.dtype,
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry().decompositions, "in_place", InPlace(part, way, what))
    model = model.to(dtype)
    before = values(model)
    small = rf.compress(model, rf.Ratio(0.5), methods=["in_place"])
    assert same(before, values(model))
    if way is in_numpy:
        assert "read-only" in small.plan["0"].reason


@pytest.mark.parametrize("part", ["refuse", "modes", "decompose", "allocate"])
def test_tensors_that_stay_where_they_are_are_not_written_to_either(
    part: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_layers, "STAYING", ("cpu",))

    def divide(array: Any) -> None:
        array /= 7.0

    def allocate(layers: Sequence[rf.Layer]) -> Iterator[rf.Choice]:
        for layer in layers:
            if part == "allocate":
                divide(layer.op.weight)
            yield rf.Choice("in_place", (2,))

    monkeypatch.setitem(registry().decompositions, "in_place", InPlace(part, divide, "weight"))
    before = values(model)
    policy: Any = Allocating(allocate)
    small = rf.compress(model, policy, include="*", methods=["in_place"])
    assert same(before, values(model))
    right = rf.compress(model, rf.Ranks(2), methods=["svd"])
    assert same(values(small.model), values(right.model))


def reached(layer: rf.Layer) -> dict[str, np.ndarray]:
    """Arrays that a policy can reach, by a word for each."""
    chain = layer.candidate("svd", (2,)).chain
    arrays = {
        "weight": layer.op.weight,
        "bias": layer.op.bias,
        "scaled weight": layer.spectrum.tensor,
        "singular values": layer.spectrum.values("output"),
        "singular vectors": layer.spectrum.eigen("output").vectors,
        "stage": chain[0].weight,
        "last bias": chain[-1].bias,
    }
    if layer.moments is not None:
        arrays |= {"inputs": layer.moments.inputs, "mean": layer.moments.mean}
        assert layer.spectrum.metric is not None
        arrays |= {"shrunk": layer.spectrum.metric.inputs, "centre": layer.spectrum.metric.mean}
    return {word: array for word, array in arrays.items() if array is not None}


@pytest.mark.parametrize("informed", [False, True], ids=["plain", "with moments"])
def test_no_array_that_a_policy_meets_can_be_written_to(informed: bool, model: nn.Module) -> None:
    met: dict[str, bool] = {}

    def allocate(layers: Sequence[rf.Layer]) -> Iterator[rf.Choice]:
        for layer in layers:
            for word, array in reached(layer).items():
                met[word] = met.get(word, False) or array.flags.writeable
            yield rf.Choice("svd", (2,))

    policy: Any = Allocating(allocate)
    moments = rf.gather(model, [torch.randn(17, 7)]) if informed else None
    rf.plan(model, policy, moments=moments)
    assert len(met) == (11 if informed else 7)
    assert [word for word, writable in met.items() if writable] == []


def test_a_rule_that_keeps_the_arrays_of_its_chain_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = LayerRule("torch", f"{HERE}:Shifted", f"{HERE}:read_shifted", f"{HERE}:build_shifted")
    monkeypatch.setattr(registry(), "rules", [rule])
    model = nn.Sequential(Shifted(7, 11))
    before = values(model)
    small = rf.compress(model, rf.Ranks(2))
    assert small.plan["0"].method == "svd"
    with torch.no_grad():
        for parameter in small.model.parameters():
            parameter.add_(1.0)
    assert same(before, values(model))


class Shifted(nn.Linear):
    """Another layer that no adapter knows."""


def read_shifted(layer: nn.Linear) -> rf.Linear:
    return rf.Linear(layer.weight.detach().numpy(), layer.bias.detach().numpy())


def build_shifted(chain: Any, layer: nn.Module) -> nn.Module:
    stages = []
    for stage in chain:
        out, into = stage.weight.shape
        made = nn.Linear(into, out, bias=stage.bias is not None)
        made.weight = nn.Parameter(torch.from_numpy(stage.weight))
        if stage.bias is not None:
            made.bias = nn.Parameter(torch.from_numpy(stage.bias))
        stages.append(made)
    return nn.Sequential(*stages)
