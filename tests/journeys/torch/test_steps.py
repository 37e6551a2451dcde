"""plan, apply and compress on PyTorch models: reasons of layers, faulty plugins, observers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.plugins.registry import registry
from rankfold_torch.layers import stock as torch_layers

Untouched = Callable[[nn.Module], AbstractContextManager[None]]
CHOICES = [
    pytest.param(rf.Energy(0.5), None, id="energy"),
    pytest.param(rf.Ratio(0.4), None, id="ratio"),
    pytest.param(rf.VBMF(weaken=0.3), None, id="vbmf"),
    pytest.param(rf.Ranks(2), ("svd", "cp"), id="cp"),
    pytest.param(rf.Ranks(2), ("svd", "cp3"), id="cp3"),
    pytest.param(rf.Ranks("full"), ("svd", "spatial_svd"), id="full"),
]


def network() -> nn.Module:
    """Layers of decaying spectrum, so that every policy finds something."""
    model = nn.Sequential(
        nn.Conv2d(5, 13, (3, 4)),
        nn.BatchNorm2d(13),
        nn.Conv2d(13, 17, 3, 2, bias=False),
        nn.Flatten(),
        nn.Linear(17 * 6, 19),
        nn.Linear(19, 11),
    )
    for layer in (model[0], model[2], model[4], model[5]):
        weight = layer.weight.data
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        s = s[0] * 0.6 ** torch.arange(len(s))
        layer.weight.data = (u * s @ v).reshape(weight.shape)
    return model.eval()


@pytest.fixture
def model() -> nn.Module:
    return network()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 9, 8)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(("policy", "methods"), CHOICES)
def test_without_inputs_applying_the_plan_is_compressing_bit_for_bit(
    model: nn.Module, policy: Any, methods: Any
) -> None:
    first, second = (rf.compress(model, policy, methods=methods, seed=3) for _ in range(2))
    assert first.plan.replaced
    assert same(first.model, second.model)
    applied = rf.apply(model, first.plan)
    assert same(applied.model, first.model)
    assert applied.plan == first.plan == rf.plan(model, policy, methods=methods, seed=3)


def test_the_surrounding_random_state_does_not_matter(model: nn.Module) -> None:
    once = rf.compress(model, rf.Ranks(2), methods=("svd", "cp"))
    torch.manual_seed(99)
    np.random.seed(99)
    assert same(once.model, rf.compress(model, rf.Ranks(2), methods=("svd", "cp")).model)


def test_apply_takes_the_errors_of_its_own_model(model: nn.Module) -> None:
    plan = rf.plan(model, rf.Ranks(2))
    other = network()
    nn.init.normal_(other[5].weight)
    assert rf.apply(other, plan).plan["5"].error > plan["5"].error


def test_a_plan_that_does_not_fit_leaves_the_model_as_it_was(
    model: nn.Module, untouched: Untouched
) -> None:
    good = rf.LayerPlan(path="4", method="svd", ranks=(2,))
    bad = rf.LayerPlan(path="5", method="svd", ranks=(99,))
    with untouched(model), pytest.raises(rf.RankfoldError):
        rf.apply(model, rf.Plan(layers=(good, bad)), inplace=True)


def tie(model: Any) -> None:
    model.tied = nn.Linear(19, 11)
    model.tied.weight = model[5].weight


def norm(model: Any) -> None:
    nn.utils.parametrizations.orthogonal(model[5])


def hook(model: Any) -> None:
    model[5].register_forward_hook(lambda *anything: None)


def spoil(model: Any) -> None:
    model[5].weight.data[3, 2] = float("nan")


def erase(model: Any) -> None:
    model[5].weight.data.zero_()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tie, "tied: its weight is also 'tied.weight'"),
        (norm, "parametrized"),
        (hook, "it has hooks"),
        (spoil, "the weight has 1 NaN or infinite values of 209"),
        (erase, "the weight is all zero"),
    ],
)
def test_apply_leaves_a_layer_that_must_be_left_alone_here(
    model: nn.Module, change: Callable[[nn.Module], None], reason: str
) -> None:
    plan = rf.plan(model, rf.Ranks(2))
    changed = network()
    changed.load_state_dict(model.state_dict())
    change(changed)
    small = rf.apply(changed, plan)
    assert small.plan["5"].method is None
    assert reason in small.plan["5"].reason
    assert small.plan["4"].method == "svd"


def test_a_path_with_the_signs_of_patterns_matches_itself() -> None:
    model = nn.ModuleDict({"[x]": nn.Linear(11, 7), "y": nn.Linear(11, 7)})
    plan = rf.plan(model, rf.Ranks(2), exclude="[x]")
    assert plan["[x]"].reason == "excluded by '[x]'"
    assert plan["y"].method == "svd"


def test_a_shared_layer_is_selected_by_any_of_its_paths() -> None:
    shared = nn.Linear(11, 11)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(11, 7)})
    assert rf.plan(model, rf.Ranks(2), exclude="b")["a"].reason == "excluded by 'b'"


def test_a_policy_given_as_a_class_is_an_error(model: nn.Module) -> None:
    with pytest.raises(rf.RankfoldError, match="use for example"):
        rf.compress(model, rf.VBMF)


@pytest.mark.parametrize("policy", [rf.Energy(0.5), rf.Ratio(0.3), rf.VBMF()], ids=str)
@pytest.mark.parametrize("traced", [True, False])
def test_no_layer_grows(
    model: nn.Module,
    x: torch.Tensor,
    policy: Any,
    traced: bool,
    count: Callable[[nn.Module], int],
) -> None:
    small = rf.compress(model, policy, inputs=x if traced else None)
    paths = [layer.path for layer in small.plan.layers]
    sizes = [[count(m.get_submodule(path)) for path in paths] for m in (model, small.model)]
    assert all(after <= before for before, after in zip(*sizes, strict=True))


def test_ranks_beyond_a_layer_leave_it_alone(model: nn.Module) -> None:
    plan = rf.plan(model, rf.Ranks(12), methods="svd")
    assert "rank 12 exceeds 11" in plan["5"].reason
    assert plan["4"].ranks == (12,)


def test_noise_has_no_rank(model: nn.Module) -> None:
    nn.init.normal_(model[5].weight)
    plan = rf.plan(model, rf.VBMF(), include="5")
    assert plan["5"].reason.startswith("rank 0: EVBMF found no structure above the noise")


def filled(value: float, *shape: int) -> nn.Module:
    layer = nn.Linear(11, 7) if not shape else nn.Conv2d(5, 7, 3)
    nn.init.constant_(layer.weight, value)
    return layer


def with_bias(value: float) -> nn.Module:
    layer = nn.Linear(11, 7)
    layer.bias.data[2] = value
    return layer


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "NaN": (lambda: filled(float("nan")), "the weight has 77 NaN or infinite values of 77"),
    "infinite": (lambda: filled(float("inf")), "the weight has 77 NaN or infinite values of 77"),
    "minus infinite": (lambda: filled(-float("inf")), "NaN or infinite values"),
    "zero": (lambda: filled(0.0), "the weight is all zero"),
    "zero conv": (lambda: filled(0.0, 2), "the weight is all zero"),
    "no inputs": (lambda: nn.Linear(0, 7), "the weight of shape (7, 0) is empty"),
    "no outputs": (lambda: nn.Linear(11, 0), "the weight of shape (0, 11) is empty"),
}


@pytest.mark.parametrize("policy", [rf.Energy(0.5), rf.Ranks("full"), rf.VBMF()], ids=str)
@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_a_weight_that_cannot_be_decomposed_is_the_reason(case: str, policy: Any) -> None:
    make, reason = UNFIT[case]
    small = rf.compress(nn.Sequential(make()), policy)
    assert small.plan["0"].method is None
    assert reason in small.plan["0"].reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bias_that_is_not_finite_is_the_reason_in_the_plan(value: float) -> None:
    planned = rf.plan(nn.Sequential(with_bias(value)), rf.Ranks(2))["0"]
    assert planned.method is None
    assert "bias" in planned.reason


@pytest.mark.parametrize("policy", [rf.Energy(0.5), rf.Ratio(0.5), rf.VBMF()], ids=str)
def test_a_weight_of_one_element_is_left_alone_with_a_reason(policy: Any) -> None:
    planned = rf.plan(nn.Sequential(nn.Linear(1, 1)), policy)["0"]
    assert planned.method is None
    assert planned.reason


def test_a_weight_of_one_element_is_reproduced_at_full_rank() -> None:
    layer = nn.Linear(1, 1)
    x = torch.randn(3, 1)
    small = rf.compress(nn.Sequential(layer), rf.Ranks("full"))
    torch.testing.assert_close(small.model(x), layer(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e18])
def test_weights_of_any_scale_are_reproduced(scale: float, distance: Callable[..., float]) -> None:
    layer = nn.Linear(11, 7, bias=False)
    layer.weight.data.mul_(scale)
    x = torch.randn(3, 11)
    small = rf.compress(layer, rf.Ranks("full"))
    assert small.plan[""].method == "svd"
    assert distance(small.model(x), layer(x)) < 1e-5


class Faulty:
    """The SVD with a fault: one of its methods raises or gives something wrong."""

    name = "faulty"

    def __init__(self, part: str, fault: Callable[..., Any]) -> None:
        self.part, self.fault = part, fault
        self.sound = registry().decompositions["svd"]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.sound, name)
        if name != self.part:
            return found
        return lambda *args, **options: self.fault(found, *args, **options)


def raises(*anything: Any, **options: Any) -> Any:
    raise RuntimeError("out of order")


def gives_none(*anything: Any, **options: Any) -> None:
    return None


def changed(**fields: Any) -> Callable[..., Any]:
    def fault(sound: Any, *args: Any, **options: Any) -> Any:
        from dataclasses import replace

        return replace(sound(*args, **options), **fields)

    return fault


def spoiled(value: float) -> Callable[..., Any]:
    def fault(sound: Any, *args: Any, **options: Any) -> Any:
        factored = sound(*args, **options)
        factored.chain[0].weight[:] *= value
        return factored

    return fault


def reversed_chain(sound: Any, *args: Any, **options: Any) -> Any:
    factored = sound(*args, **options)
    return changed(chain=factored.chain[::-1])(sound, *args, **options)


FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "refuse raises": ("refuse", raises),
    "max_ranks raises": ("max_ranks", raises),
    "modes raises": ("modes", raises),
    "ranks raises": ("ranks", raises),
    "template raises": ("template", raises),
    "decompose raises": ("decompose", raises),
    "decompose gives None": ("decompose", gives_none),
    "NaN error": ("decompose", changed(error=float("nan"))),
    "error too small": ("decompose", changed(error=1e-9)),
    "empty chain": ("decompose", changed(chain=())),
    "NaN weights": ("decompose", spoiled(float("nan"))),
    "wrong weights": ("decompose", spoiled(0.5)),
    "wrong order": ("decompose", reversed_chain),
}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def register(case: str) -> None:
        monkeypatch.setitem(registry().decompositions, "faulty", Faulty(*FAULTS[case]))

    return register


@pytest.mark.parametrize("policy", [rf.Ranks(2), rf.Energy(0.5)], ids=str)
@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_decomposition_does_not_reach_the_model(
    case: str, policy: Any, faulty: Callable[[str], None], distance: Callable[..., float]
) -> None:
    faulty(case)
    layer = network()[5]
    small = rf.compress(nn.Sequential(layer), policy, methods="faulty")
    planned = small.plan["0"]
    if planned.method is None:
        assert planned.reason
        assert type(small.model[0]) is nn.Linear
    else:
        expected = rf.compress(nn.Sequential(layer), policy, methods="svd")
        assert same(small.model, expected.model)


@pytest.mark.parametrize("policy", [rf.Ranks(2), rf.Energy(0.5)], ids=str)
@pytest.mark.parametrize("case", FAULTS)
def test_other_layers_go_on_beside_a_faulty_decomposition(
    case: str, policy: Any, model: nn.Module, faulty: Callable[[str], None]
) -> None:
    faulty(case)
    small = rf.compress(model, policy, methods=("tucker2", "faulty"))
    assert small.plan["0"].method == "tucker2"


@pytest.mark.parametrize("case", ["decompose raises", "NaN weights", "wrong weights"])
def test_the_reason_names_the_fault(case: str, faulty: Callable[[str], None]) -> None:
    faulty(case)
    reason = rf.compress(nn.Linear(11, 7), rf.Ranks(2), methods="faulty").plan[""].reason
    assert {
        "decompose raises": "faulty failed: RuntimeError('out of order')",
        "NaN weights": "faulty gave values that are not finite",
        "wrong weights": "the chain has a weight error of",
    }[case] in reason


def no_bias(built: nn.Sequential) -> None:
    built[-1].bias = None


def other_bias(built: nn.Sequential) -> None:
    built[-1].bias.data += 0.1


def one_weight(built: nn.Sequential) -> None:
    built[0].weight.data[0] += 0.1


def swapped_weights(built: nn.Sequential) -> None:
    built[1].weight.data = built[1].weight.data.transpose(0, 1).contiguous()


def flipped_kernel(built: nn.Sequential) -> None:
    built[1].weight.data = built[1].weight.data.flip(-1)


def stride(built: nn.Sequential) -> None:
    built[1].stride = (1, 1)


def stride_too_early(built: nn.Sequential) -> None:
    built[0].stride, built[1].stride = (2, 3), (1, 1)


def padding(built: nn.Sequential) -> None:
    built[1].padding = (0, 0)


def dilation(built: nn.Sequential) -> None:
    built[1].dilation, built[1].padding = (2, 1), (3, 2)


def activation(built: nn.Sequential) -> None:
    built.append(nn.ReLU())


def missing_stage(built: nn.Sequential) -> None:
    del built[0]


def crash(built: nn.Sequential) -> None:
    raise RuntimeError("out of memory")


BUILDS = [
    no_bias,
    other_bias,
    one_weight,
    swapped_weights,
    flipped_kernel,
    stride,
    stride_too_early,
    padding,
    dilation,
    activation,
    missing_stage,
    crash,
]


@pytest.fixture
def wrong_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    sound = torch_layers.build

    def use(fault: Callable[[nn.Sequential], None]) -> None:
        def build(chain: Any, like: nn.Module) -> nn.Sequential:
            built = sound(chain, like)
            if isinstance(like, nn.Conv2d):
                fault(built)
            return built

        monkeypatch.setattr(torch_layers, "build", build)

    return use


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("fault", BUILDS)
def test_a_wrongly_built_layer_is_left_alone_with_a_reason(
    fault: Callable[[nn.Sequential], None],
    dtype: torch.dtype,
    wrong_build: Callable[[Any], None],
) -> None:
    wrong_build(fault)
    model = nn.Sequential(nn.Conv2d(5, 7, 3, (2, 3), (2, 1)), nn.Linear(11, 13)).to(dtype)
    small = rf.compress(model, rf.Ranks(3), methods=("svd", "tucker2"))
    assert small.plan["0"].method is None
    assert "built module" in small.plan["0"].reason or "building" in small.plan["0"].reason
    assert small.plan["0"].params == (322, 322)
    assert type(small.model[0]) is nn.Conv2d
    assert small.plan["1"].method == "svd"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", BUILDS)
def test_a_wrongly_built_layer_is_noticed_in_half_precision(
    fault: Callable[[nn.Sequential], None],
    dtype: torch.dtype,
    wrong_build: Callable[[Any], None],
) -> None:
    wrong_build(fault)
    model = nn.Sequential(nn.Conv2d(5, 7, 3, (2, 3), (2, 1))).to(dtype)
    small = rf.compress(model, rf.Ranks(3), methods="tucker2")
    assert small.plan["0"].method is None


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[rf.LayerPlan]]:
    """What an observing plugin hears."""
    from types import ModuleType

    from rankfold.plugins.hookspecs import hookimpl

    heard: list[rf.LayerPlan] = []
    plugin = ModuleType("observer")

    @hookimpl
    def rankfold_layer_done(report: rf.LayerPlan) -> None:
        heard.append(report)

    plugin.rankfold_layer_done = rankfold_layer_done
    manager = registry()._manager
    manager.register(plugin, name="observer")
    monkeypatch.setitem(registry().plugins, "observer", "observer")
    yield heard
    manager.unregister(name="observer")


def test_observers_hear_of_every_layer_of_compress(
    model: nn.Module, observed: list[rf.LayerPlan]
) -> None:
    plan = rf.compress(model, rf.Ranks(2), exclude="2").plan
    assert sorted(observed, key=lambda heard: heard.path) == list(plan.layers)


def test_observers_hear_of_every_layer_of_apply(
    model: nn.Module, observed: list[rf.LayerPlan]
) -> None:
    plan = rf.plan(model, rf.Ranks(2))
    observed.clear()
    rf.apply(model, plan)
    assert observed == list(plan.layers)


def test_observers_hear_that_a_layer_was_left_alone_after_all(
    observed: list[rf.LayerPlan], wrong_build: Callable[[Any], None]
) -> None:
    wrong_build(stride)
    plan = rf.compress(nn.Conv2d(5, 7, 3, 2), rf.Ranks(3), methods="tucker2").plan
    assert observed == list(plan.layers)


def test_tampered_json_is_an_error(model: nn.Module) -> None:
    text = rf.plan(model, rf.Ranks(2)).to_json()
    for damaged in (text[:-5], text.replace('"layers"', '"layer"'), "[]", ""):
        with pytest.raises(rf.RankfoldError, match="not a rankfold plan"):
            rf.Plan.from_json(damaged)


def test_a_plan_of_another_version_is_an_error(model: nn.Module) -> None:
    plan = msgspec.structs.replace(rf.plan(model, rf.Ranks(2)), version=2)
    with pytest.raises(rf.RankfoldError, match="version 2"):
        rf.Plan.from_json(plan.to_json())


def test_a_model_that_is_not_the_same_any_more_is_told_of() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    batches = [torch.randn(64, 32)]
    kept = rf.compress(model, rf.Ranks(31), calibration=batches)
    ruined = rf.compress(model, rf.Ranks(1), calibration=batches)
    assert "not the same network" not in str(kept.plan)
    assert "not the same network" in str(ruined.plan)


def test_a_loss_that_is_no_number_is_a_note_of_a_plan_that_can_be_read_again() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    small = rf.compress(
        model,
        rf.Ranks(8),
        calibration=[torch.randn(64, 32)],
        loss=lambda outputs, batch: outputs.square().sum() + float("inf"),
    )
    assert small.plan.loss is None
    assert any("no numbers" in note for note in small.plan.notes)
    assert rf.Plan.from_json(small.plan.to_json()) == small.plan
