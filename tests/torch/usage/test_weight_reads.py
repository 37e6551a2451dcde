"""Which uses of a layer besides calling it keep it from being replaced, seen or read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import rankfold as rf

SIZE = 12
NOT_RUN = "no call of it is counted on the example inputs"


def trained(model: nn.Module) -> nn.Module:
    """With weights of rank 2, so that a chain of rank 2 computes the same."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            left, right = parameter.data[:, :2], parameter.data[:2]
            parameter.data = left @ right
    return model.eval()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.layers = nn.ModuleList([nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)])
        self.tanh = nn.Tanh()
        self.mode, self.bias_of_q, self.fast = "plain", None, False
        self.options = {"share": False}


def reads(name: str, forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> Any:
    return pytest.param(type(name, (Net,), {"forward": forward}), id=name)


class Bulk(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).mean() + sum(p.abs().sum() for p in self.parameters())


class Named(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        penalty = x.new_zeros(())
        for _, parameter in self.named_parameters():
            penalty = penalty + parameter.square().sum()
        return self.a(x) + penalty


class State(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.state_dict()["a.weight"].t()


class Functional(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = {name: 0.5 * value for name, value in self.a.named_parameters()}
        return functional_call(self.a, halves, (x,))


class Ensemble(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, _ = stack_module_state([self.a, self.b])
        run = vmap(lambda each: functional_call(self.a, each, (x,)))
        return run(state).sum(0)


class ByName(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.get_parameter("a.weight")


class ByAttribute(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ getattr(self.a, "weight")  # noqa: B009 - the kind


class ByDict(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a._parameters["weight"]


class ByVars(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ vars(self.a)["_parameters"]["weight"]


class InZip(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _, (activation, layer) in enumerate(zip([self.tanh], [self.a], strict=True)):
            x = activation(layer(x))
        for scale, layer in zip((1.0, 2.0), self.layers, strict=True):
            x = F.linear(x, layer.weight) * scale
        return x


class ByAnAlias(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        net = self
        return x @ net.a.weight


class InPairs(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for pair in enumerate(self.layers):
            _, layer = pair
            x = F.linear(x, layer.weight)
        return x


class AsAKey(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known = {float(self.a.weight.sum()): x for _ in range(1)}
        return self.b(next(iter(known.values())))


class Predictor(nn.Module):
    """Runs its layer in another method than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(SIZE, SIZE)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.a.weight.data.clamp_(-0.5, 0.5)
        return self.a(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ByAnotherName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = Predictor()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.p(self.p.predict(x))


class Clips(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a.weight.data.clamp_(-0.5, 0.5)
        return self.a(x)


class Unpacks(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, last = self.layers
        return x @ first.weight @ last.weight


class InATuple(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.a, self.b):
            x = x @ layer.weight
        return x


class ByAComputedName(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.get_parameter("a." + "weight")


class IfAListIsEqual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.weight if self.sizes == [1, 2] else self.a(x)


USING = {
    Unpacks: "layers.1",
    InATuple: "a",
    ByAComputedName: "a",
    IfAListIsEqual: "a",
    Bulk: "a",
    Named: "a",
    State: "a",
    Functional: "a",
    Ensemble: "a",
    ByName: "a",
    ByAttribute: "a",
    ByDict: "a",
    ByVars: "a",
    InZip: "layers.1",
    ByAnAlias: "a",
    InPairs: "layers.1",
    AsAKey: "a",
    ByAnotherName: "p.a",
    Clips: "a",
}


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("cls", USING)
def test_a_layer_whose_weight_is_computed_with_is_left_alone(cls: type, traced: bool) -> None:
    inputs = torch.randn(3, SIZE) if traced else None
    layer = rf.plan(cls().eval(), rf.Ranks(2), inputs=inputs)[USING[cls]]
    assert layer.method is None
    assert layer.reason.startswith("its weight is ") or "functional_call" in layer.reason


@torch.jit.script
def scripted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


HIDDEN = {
    "scripted function": lambda net, x: scripted(x, net.a.weight),
    "vmap": lambda net, x: net.b(x) + vmap(torch.sum)(net.a.weight).sum(),
    "cast": lambda net, x: x @ net.a.weight.double().float(),
    "item": lambda net, x: net.b(x) * net.a.weight[0, 0].item(),
    "output": lambda net, x: (net.b(x), net.a.weight),
    "other weight": lambda net, x: functional_call(net.a, {"weight": torch.eye(SIZE)}, (x,)),
}


class Calls(Net):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = [function]

    def forward(self, x: torch.Tensor) -> Any:
        return self.function[0](self, x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("case", HIDDEN)
def test_a_run_shows_any_use_of_a_weight(case: str) -> None:
    plan = rf.plan(Calls(HIDDEN[case]).eval(), rf.Ranks(2), inputs=torch.randn(3, SIZE))
    assert plan["a"].method is None
    assert plan["b"].method == "svd"


class Looks(Net):
    """Asks for what a replacement can tell."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = next(self.parameters())
        x = x.to(device=first.device, dtype=self.a.weight.dtype)
        if isinstance(self.a.weight, torch.Tensor) and self.a.bias is not None:
            x = x.reshape(-1, self.a.weight.shape[1]).type_as(self.a.weight)
        assert self.a.weight.ndim == self.b.weight.dim() == 2
        assert sum(p.numel() for p in self.parameters()) > 0
        return self.b(self.a(x))


def dtype_of(layer: nn.Linear) -> torch.dtype:
    return layer.weight.data.dtype


VIEWING: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "data": lambda net, x: net.a(x.to(net.a.weight.data.dtype)),
    "data in a helper": lambda net, x: net.a(x.to(dtype_of(net.a))),
    "detached": lambda net, x: net.a(x.to(net.a.weight.detach().device)),
    "transposed": lambda net, x: net.a(x) * net.a.weight.T.shape[0],
    "view": lambda net, x: net.a(x) * net.a.weight.view(-1).shape[0],
    "new": lambda net, x: net.a(x) + net.a.weight.new_ones(SIZE) + net.a.bias.new_tensor(2.0),
    "like": lambda net, x: net.a(x) + torch.zeros_like(net.a.bias),
    "asked for": lambda net, x: net.a(x) if net.a.weight.is_contiguous() else x,
}


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("case", VIEWING)
def test_what_reads_no_values_keeps_no_layer_from_being_replaced(case: str, traced: bool) -> None:
    model = Calls(VIEWING[case]).eval()
    x = torch.randn(3, SIZE)
    small = rf.compress(model, rf.Ranks("full"), inputs=x if traced else None)
    assert small.plan["a"].method == "svd"
    torch.testing.assert_close(small.model(x), model(x), atol=1e-4, rtol=1e-4)


class AsksForViews(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.a.weight.data.dtype) * self.a.weight.T.shape[0]
        x = x + self.a.weight.new_zeros(SIZE) + torch.zeros_like(self.a.bias)
        return self.a(x) * self.a.weight.stride(1)


@pytest.mark.parametrize("traced", [True, False])
def test_source_that_asks_for_views_alone_is_no_reason(traced: bool) -> None:
    inputs = torch.randn(3, SIZE) if traced else None
    assert rf.plan(AsksForViews().eval(), rf.Ranks(2), inputs=inputs)["a"].method == "svd"


class Guards(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match x.shape[-1]:
            case 12 if self.a.weight.sum() > 0:
                x = 2 * x
        return self.b(self.a(x))


def test_the_guard_of_a_case_is_read() -> None:
    plan = rf.plan(Guards().eval(), rf.Ranks(2))
    assert plan["a"].reason == "its weight is read by Guards.forward"
    assert plan["b"].method == "svd"


class Static(Net):
    @staticmethod
    def part(values: torch.Tensor, count: int) -> torch.Tensor:
        head = values[:, :count]
        return values + torch.zeros(head.size()).sum()

    @classmethod
    def named(cls, values: torch.Tensor) -> torch.Tensor:
        return values.view(-1, values.size(-1)).weight if values is None else values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = (lambda self: self + self.mean())(self.a(x))
        return self.named(self.part(shifted, 2)) + self.b(x)


class Zips(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for state, layer in zip([x, x], self.layers, strict=True):
            x = x + layer(state) * state.size(0)
        for name, layer in self.named_children():
            if name == "a":
                x = layer(x)
        for pair in enumerate(zip(self.layers, [x, x], strict=True)):
            _, both = pair
            layer, state = both
            x = x + state.weight if state is None else x + state.sum()
        return self.b(x)


class Never(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "shared" and x.shape[0] > 1:
            return F.linear(x, self.a.weight)
        if self.bias_of_q is None:
            return self.b(self.a(x))
        return self.shared(x)

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.a.weight, self.bias_of_q)


class Neither(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(x, self.a.weight) if self.fast else self.a(x)
        while self.fast or hasattr(self, "missing"):
            x = x @ self.b.weight
        return x if self.mode != "plain" and self.a.weight.sum() > 0 else self.b(x)


class Initialises(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fix_init_weight()

    def fix_init_weight(self) -> None:
        def rescale(weight: torch.Tensor, by: float) -> None:
            weight.div_(by)

        rescale(self.a.weight.data, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


REPLACED = [Initialises, Looks, Static, Zips, Never, Neither]


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("cls", REPLACED)
def test_a_layer_of_which_no_value_is_read_is_replaced(
    cls: type, traced: bool, distance: Callable[..., float]
) -> None:
    model, x = trained(cls()), torch.randn(3, SIZE)
    small = rf.compress(model, rf.Ranks(2), inputs=x if traced else None)
    assert {layer.reason for layer in small.plan.layers} <= {"", NOT_RUN}
    assert small.plan["a"].method == "svd"
    assert distance(small.model(x), model(x)) < 1e-5


def forces(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net.b(net.a(x).tanh()).sum(), x)
    return gradient


def jacobians(net: Net, x: torch.Tensor) -> torch.Tensor:
    return vmap(torch.func.jacrev(lambda row: net.b(net.a(row).tanh()).sum()))(x)


@pytest.mark.parametrize("function", [forces, jacobians])
def test_a_backward_pass_inside_the_run_is_no_use_of_a_weight(
    function: Callable[..., Any], distance: Callable[..., float]
) -> None:
    model, x = Calls(function).eval(), torch.randn(3, SIZE)
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert small.plan["a"].method == small.plan["b"].method == "svd"
    assert distance(small.model(x), model(x)) < 1e-5


class Optional(Net):
    def forward(self, x: torch.Tensor, share: bool = False) -> torch.Tensor:
        return F.linear(x, self.a.weight) if share else self.a(x)


class OfTheMode(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fused(x) if self.training else self.a(x)

    def fused(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.a.weight)


class OfTheDevice(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "cuda" in self.b.weight.device.type and not torch.compiler.is_compiling():
            return F.linear(x, self.a.weight)
        return self.a(x)


class OfTheInput(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[0]
        return F.linear(x, self.a.weight) if length > 100 else self.a(x)


class OfTheState(Net):
    def merge(self) -> None:
        self.fast = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.a.weight) if self.fast else self.a(x)


class OnceWarm(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, "warm", False) or hasattr(self, "warm"):
            return F.linear(x, self.a.weight)
        self.warm = True
        return self.a(x)


def test_a_run_overrules_the_source_where_an_option_is_left_out() -> None:
    x = torch.randn(3, SIZE)
    assert rf.plan(Optional(), rf.Ranks(2))["a"].method is None
    assert rf.plan(Optional(), rf.Ranks(2), inputs=x)["a"].method == "svd"
    shared = rf.plan(Optional(), rf.Ranks(2), inputs={"x": x, "share": True})
    assert shared["a"].reason == "its weight is read from outside the layer"


def test_what_a_run_showed_holds_for_apply_and_load(tmp_path: Any) -> None:
    model, x = Optional().eval(), torch.randn(3, SIZE)
    small = rf.compress(model, rf.Ranks(2), inputs=x)
    small.save(tmp_path / "saved")
    assert torch.equal(rf.load(Optional(), tmp_path / "saved").eval()(x), small.model(x))
    applied = rf.apply(model, rf.plan(model, rf.Ranks(2), inputs=x))
    assert applied.plan["a"].method == "svd"


@pytest.mark.parametrize("cls", [OfTheMode, OfTheDevice, OfTheInput, OfTheState, OnceWarm])
def test_a_read_in_a_branch_that_another_run_may_take_counts(cls: type) -> None:
    plan = rf.plan(cls().eval(), rf.Ranks(2), inputs=torch.randn(3, SIZE))
    assert plan["a"].reason == f"its weight is read by {cls.__name__}.forward"
    assert plan["b"].method == "svd"


class Trains(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self(batch).sum() + self._penalty()

    def _penalty(self) -> torch.Tensor:
        return self.a.weight.abs().sum()

    @property
    def table(self) -> torch.Tensor:
        return self.layers[0].weight

    def init_weights(self) -> None:
        nn.init.zeros_(self.b.weight)
        self.b.weight.data.normal_()

    def tie_weights(self) -> None:
        self.layers[1].weight = self.b.weight

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def groups(self) -> list[Any]:
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def no_weight_decay(self) -> set[str]:
        return {name for name in self.state_dict() if "bias" in name}

    def log_gradients(self) -> float:
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        return sum(float(p.grad.norm()) for p in self.parameters() if p.grad is not None)


@pytest.mark.parametrize("traced", [True, False])
def test_other_methods_count_where_they_compute_with_a_weight(traced: bool) -> None:
    plan = rf.plan(Trains(), rf.Ranks(2), inputs=torch.randn(3, SIZE) if traced else None)
    assert {layer.path: layer.reason for layer in plan.layers if not layer.method} == {
        "a": "its weight is read by Trains._penalty",
        "layers.0": "its weight is read by Trains.table",
    }


class Rates(nn.Module):
    """Sets the geometry of its convolution before each call of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)


class Assigns(Rates):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rate = 1 if x.shape[-1] < 10 else 2
        self.conv.dilation = self.conv.padding = (rate, rate)
        return self.conv(x) + self.other(x)


class SetsByName(Rates):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.conv
        for name in ("dilation", "padding"):
            setattr(layer, "stride", (1, 1))  # noqa: B010 - the kind
            layer.__dict__[name] = (1, 1)
        return self.conv(x) + self.other(x)


class SetsAll(Rates):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, rate in zip([self.conv], [(1, 1)], strict=True):
            layer.dilation = rate
        (self.conv.stride, _) = (1, 1), None
        return self.conv(x) + self.other(x)


def prepare(module: Any, args: Any) -> None:
    module.conv.padding = (1, 1)


def hooked() -> nn.Module:
    class Plain(Rates):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + self.other(x)

    model = Plain()
    model.register_forward_pre_hook(prepare)
    return model


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("make", [Assigns, SetsByName, SetsAll, hooked])
def test_a_layer_whose_geometry_is_set_in_a_run_is_left_alone(
    make: Callable[[], nn.Module], traced: bool
) -> None:
    inputs = torch.randn(2, 6, 8, 8) if traced else None
    plan = rf.plan(make().eval(), rf.Ranks(3), inputs=inputs)
    assert plan["conv"].method is None
    assert " set " in plan["conv"].reason
    assert plan["other"].method is not None


def sets(layer: Any) -> None:
    layer.padding = (1, 1)


def test_a_run_shows_that_a_helper_sets_geometry_and_leaves_it_as_it_was() -> None:
    class Helped(Rates):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sets(self.conv)
            return self.conv(x) + self.other(x)

    model = Helped().eval()
    before = model.conv.padding
    plan = rf.plan(model, rf.Ranks(3), inputs=torch.randn(2, 6, 8, 8))
    assert plan["conv"].reason == "its padding is set while the model runs"
    assert model.conv.padding is before


class Hook:
    """As accelerate's: found by name on the module whose forward is exchanged."""


def dispatched(device: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(SIZE, 7, device=device), nn.Tanh())
    layer = model[0]
    layer._old_forward, layer._hf_hook = layer.forward, Hook()
    layer.forward = lambda x: layer._old_forward(x)
    return model


@pytest.mark.parametrize(("device", "state"), [("cpu", "Hook: take"), ("meta", "is offloaded")])
def test_a_hook_of_accelerate_is_named_with_the_remedy(device: str, state: str) -> None:
    reason = rf.plan(dispatched(device), rf.Ranks(2))["0"].reason
    assert reason.startswith("it has a hook of accelerate, Hook")
    assert state in reason
    assert "accelerate.hooks.remove_hook_from_module(model, recurse=True)" in reason


def test_a_layer_that_has_been_given_back_its_forward_is_replaced() -> None:
    model = dispatched("cpu")
    layer = model[0]
    layer.forward = layer._old_forward
    del layer._hf_hook, layer._old_forward
    assert rf.plan(model, rf.Ranks(2))["0"].method == "svd"


class TakesAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(SIZE, 7)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.fc(image) for image in images]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_for_one_argument_is_told_how_to_be_written(kind: type) -> None:
    images = [torch.randn(3, SIZE), torch.randn(5, SIZE)]
    with pytest.raises(rf.RankfoldError, match=r"positional arguments.*write inputs=\("):
        rf.plan(TakesAList(), rf.Ranks(2), inputs=kind(images))
    assert rf.plan(TakesAList(), rf.Ranks(2), inputs=(images,))["fc"].macs[0] == 8 * SIZE * 7


def test_weights_in_one_storage_are_told_apart() -> None:
    model = Calls(lambda net, x: net.b(x @ net.a.weight)).eval()
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    plan = rf.plan(model, rf.Ranks(2), inputs=torch.randn(3, SIZE))
    read = [layer.path for layer in plan.layers if "outside" in layer.reason]
    assert read == ["a"]
