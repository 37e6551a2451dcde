"""What stands in place of a layer, what it keeps of it, and that the original is left as it was."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf

METHODS = ("svd", "channel_svd", "spatial_svd", "tucker2", "cp", "cp3")
STOCK = {
    nn.Linear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(23, 17), "svd", (2, 23)),
    "embedding": (lambda: nn.Embedding(29, 13), "svd", (2, 5)),
    "pointwise": (lambda: nn.Conv2d(13, 11, 1, stride=(2, 1)), "svd", (2, 13, 9, 8)),
    "channel_svd": (lambda: nn.Conv2d(7, 11, (3, 4)), "channel_svd", (2, 7, 9, 8)),
    "spatial_svd": (lambda: nn.Conv2d(7, 11, (3, 4), 2), "spatial_svd", (2, 7, 9, 8)),
    "tucker2": (lambda: nn.Conv2d(7, 11, (3, 4), 2), "tucker2", (2, 7, 9, 8)),
    "cp": (lambda: nn.Conv2d(7, 11, (3, 4), (1, 2)), "cp", (2, 7, 9, 8)),
    "cp3": (lambda: nn.Conv2d(7, 11, (3, 4), (1, 2)), "cp3", (2, 7, 9, 8)),
    "1-d": (lambda: nn.Conv1d(7, 11, 4, 3, 2), "tucker2", (2, 7, 17)),
    "3-d": (lambda: nn.Conv3d(5, 7, (2, 3, 4), 2), "cp", (2, 5, 9, 8, 6)),
    "grouped": (lambda: nn.Conv2d(14, 22, 3, groups=2), "tucker2", (2, 14, 9, 8)),
    "transposed": (
        lambda: nn.ConvTranspose2d(7, 11, (3, 4), (2, 3), 1, 1),
        "tucker2",
        (2, 7, 9, 8),
    ),
    "transposed 1-d": (lambda: nn.ConvTranspose1d(7, 11, 4, 3), "channel_svd", (2, 7, 9)),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(5, 7, (2, 3, 4)), "cp3", (2, 5, 4, 3, 6)),
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(14, 22, 3, groups=2, bias=False),
        "spatial_svd",
        (2, 14, 9, 8),
    ),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def compressed(name: str, **options: Any) -> tuple[nn.Module, rf.Compressed]:
    make, method, _ = LAYERS[name]
    layer = make()
    return layer, rf.compress(nn.Sequential(layer), rf.Ranks(2), methods=[method], **options)


def input_of(name: str) -> torch.Tensor:
    make, _, shape = LAYERS[name]
    layer = make()
    if isinstance(layer, nn.Embedding):
        return torch.randint(0, layer.num_embeddings, shape)
    return torch.randn(shape)


class Network(nn.Module):
    """Convolutions, BatchNorm, dropout, a shared layer and layers in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 13, (3, 5), padding=1), nn.BatchNorm2d(13))
        self.blocks = nn.ModuleList([nn.Conv2d(13, 17, 3, 2), nn.Conv2d(17, 11, 3, bias=False)])
        self.heads = nn.ModuleDict({"a": nn.Linear(11, 19), "b": nn.Linear(11, 7)})
        self.drop = nn.Dropout(0.3)
        self.again = self.heads["a"]
        self.register_buffer("offset", torch.randn(11))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x).relu()
        x = self.drop(x.mean((2, 3)) + self.offset)
        return torch.cat([self.heads["a"](x) + self.again(x), self.heads["b"](x)], 1)


@pytest.fixture
def network() -> nn.Module:
    model = Network()
    model.blocks[0].weight.requires_grad_(False)
    model.heads["b"].bias.requires_grad_(False)
    model.stem.eval()
    return model


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 17, 15)


@each_layer
def test_the_replacement_is_exactly_a_sequential(name: str) -> None:
    assert isinstance(compressed(name)[1].model[0], nn.Sequential)


@each_layer
def test_the_stages_are_stock_layers(name: str) -> None:
    assert {type(stage) for stage in compressed(name)[1].model[0]} <= STOCK


@each_layer
def test_planned_parameters_are_those_of_the_built_module(
    name: str, count: Callable[[nn.Module], int]
) -> None:
    layer, small = compressed(name)
    assert small.plan["0"].params == (count(layer), count(small.model[0]))


@each_layer
def test_planned_macs_are_those_of_the_built_module(
    name: str, measured_macs: Callable[..., int]
) -> None:
    x = input_of(name)
    layer, small = compressed(name, inputs=x)
    assert small.plan["0"].macs == (
        measured_macs(layer, lambda: layer(x)),
        measured_macs(small.model, lambda: small.model(x)),
    )


@each_layer
def test_the_constants_of_the_layer_are_readable_on_the_replacement(name: str) -> None:
    layer, small = compressed(name)
    found = {key: getattr(small.model[0], key) for key in layer.__constants__}
    assert found == {key: getattr(layer, key) for key in layer.__constants__}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@each_layer
def test_every_stage_has_the_dtype_of_the_layer(name: str, dtype: torch.dtype) -> None:
    make, method, _ = LAYERS[name]
    small = rf.compress(make().to(dtype), rf.Ranks(2), methods=[method])
    assert small.plan[""].method == method
    assert {p.dtype for p in small.model.parameters()} == {dtype}


@each_layer
def test_the_last_stage_alone_has_the_bias_bit_for_bit(name: str) -> None:
    layer, small = compressed(name)
    *before, last = (getattr(stage, "bias", None) for stage in small.model[0])
    assert all(bias is None for bias in before)
    own = getattr(layer, "bias", None)
    assert last is None if own is None else torch.equal(last, own)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_requires_grad_of_weight_and_bias_is_kept(weight: bool, bias: bool) -> None:
    layer = nn.Conv2d(7, 11, 3)
    layer.weight.requires_grad_(weight)
    layer.bias.requires_grad_(bias)
    small = rf.compress(layer, rf.Ranks(2), methods=["tucker2"]).model
    assert [stage.weight.requires_grad for stage in small] == [weight] * 3
    assert small[-1].bias.requires_grad is bias


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_each_layer_is_kept(training: bool) -> None:
    model = nn.Sequential(nn.Linear(11, 7), nn.Linear(7, 5)).train(not training)
    model[1].train(training)
    small = rf.compress(model, rf.Ranks(2)).model
    assert {m.training for m in small[1].modules()} == {training}
    assert {m.training for m in small[0].modules()} == {not training}


@pytest.mark.parametrize(
    ("axes", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)]
)
@pytest.mark.parametrize("kinds", ["Conv", "ConvTranspose"])
def test_channels_last_weights_stay_so(axes: int, layout: torch.memory_format, kinds: str) -> None:
    layer = getattr(nn, f"{kinds}{axes}d")(7, 11, 3).to(memory_format=layout)
    small = rf.compress(layer, rf.Ranks(3), methods=["tucker2"]).model
    assert all(stage.weight.is_contiguous(memory_format=layout) for stage in small)
    assert not small[1].weight.is_contiguous()


def test_contiguous_weights_stay_contiguous() -> None:
    small = rf.compress(nn.Conv2d(7, 11, 3), rf.Ranks(3), methods=["tucker2"]).model
    assert small[1].weight.is_contiguous()


@pytest.mark.parametrize("traced", [True, False])
def test_plan_leaves_the_model_as_it_was(
    network: nn.Module,
    x: torch.Tensor,
    traced: bool,
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    with untouched(network):
        rf.plan(network, rf.Ratio(0.4), inputs=x if traced else None)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("methods", [None, ("svd", "cp"), ("svd", "cp3"), ("channel_svd",)])
def test_compress_leaves_the_model_as_it_was(
    network: nn.Module,
    x: torch.Tensor,
    traced: bool,
    methods: Any,
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    inputs = x if traced else None
    with untouched(network):
        small = rf.compress(network, rf.Ranks(2), inputs=inputs, methods=methods)
    assert small.plan.replaced


def test_apply_leaves_the_model_as_it_was(
    network: nn.Module,
    x: torch.Tensor,
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    plan = rf.plan(network, rf.Ratio(0.4))
    with untouched(network):
        rf.apply(network, plan, inputs=x)


def test_the_copy_shares_no_memory_with_the_original(network: nn.Module) -> None:
    small = rf.compress(network, rf.Ratio(0.4), exclude="blocks.1").model

    def memory(model: nn.Module) -> set[int]:
        tensors = (*model.parameters(), *model.buffers())
        return {t.untyped_storage().data_ptr() for t in tensors}

    assert memory(network).isdisjoint(memory(small))


def test_training_the_copy_leaves_the_original_as_it_was(
    network: nn.Module,
    x: torch.Tensor,
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    small = rf.compress(network, rf.Ranks("full")).model.train()
    torch.manual_seed(1)
    with untouched(network), torch.random.fork_rng():
        small(x).sum().backward()
        torch.optim.SGD(small.parameters(), lr=0.1).step()


def test_layers_in_containers_are_replaced_in_their_place(network: nn.Module) -> None:
    small = rf.compress(network, rf.Ranks(2), methods=("svd", "tucker2"))
    places = ("stem.0", "blocks.0", "blocks.1", "heads.a", "heads.b")
    assert [layer.path for layer in small.plan.replaced] == list(places)
    assert all(isinstance(small.model.get_submodule(path), nn.Sequential) for path in places)


def test_everything_that_is_no_layer_is_copied_bit_for_bit(network: nn.Module) -> None:
    small = rf.compress(network, rf.Ranks(2)).model
    before, after = network.state_dict(), small.state_dict()
    kept = [name for name in before if name.startswith("stem.1.") or name == "offset"]
    assert len(kept) == 6
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_the_class_of_the_model_is_kept(network: nn.Module) -> None:
    assert type(rf.compress(network, rf.Ranks(2)).model) is Network


def test_inplace_gives_back_the_model_itself(network: nn.Module) -> None:
    small = rf.compress(network, rf.Ranks(2), inplace=True)
    assert small.model is network
    assert isinstance(network.blocks[0], nn.Sequential)


def test_inplace_and_copy_give_the_same_outputs(network: nn.Module, x: torch.Tensor) -> None:
    network.eval()
    copied = rf.compress(network, rf.Ranks(2)).model(x)
    assert torch.equal(rf.compress(network, rf.Ranks(2), inplace=True).model(x), copied)


def test_apply_inplace_modifies_the_model(network: nn.Module) -> None:
    plan = rf.plan(network, rf.Ranks(2))
    assert rf.apply(network, plan, inplace=True).model is network
    assert isinstance(network.heads["a"], nn.Sequential)


class Aliased(nn.Module):
    """Holds one layer as a child and once more in a plain container."""

    def __init__(self, hold: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(11, 7)
        self.held = hold(self.layer)


HOLDERS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], nn.Module]]] = {
    "list": (lambda layer: [layer], lambda held: held[0]),
    "nested list": (lambda layer: [[None, layer]], lambda held: held[0][1]),
    "dict": (lambda layer: {"a": layer}, lambda held: held["a"]),
    "dict of lists": (lambda layer: {"a": [layer]}, lambda held: held["a"][0]),
    "tuple": (lambda layer: (layer,), lambda held: held[0]),
    "list of tuples": (lambda layer: [("a", layer)], lambda held: held[0][1]),
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", HOLDERS)
def test_a_layer_held_in_a_plain_container_is_replaced_there_too(kind: str, inplace: bool) -> None:
    hold, take = HOLDERS[kind]
    small = rf.compress(Aliased(hold), rf.Ranks(2), inplace=inplace).model
    assert isinstance(small.layer, nn.Sequential)
    assert take(small.held) is small.layer


@pytest.mark.parametrize("inplace", [True, False])
def test_a_layer_held_as_a_plain_attribute_is_replaced_there_too(inplace: bool) -> None:
    model = Aliased(lambda layer: None)
    vars(model)["shortcut"] = model.layer
    small = rf.compress(model, rf.Ranks(2), inplace=inplace).model
    assert small.shortcut is small.layer
    assert isinstance(small.layer, nn.Sequential)


def test_inplace_goes_through_containers_that_hold_themselves() -> None:
    model = Aliased(lambda layer: {"a": layer})
    model.held["self"] = model.held
    small = rf.compress(model, rf.Ranks(2), inplace=True).model
    assert small.held["a"] is small.layer


def test_inplace_leaves_other_containers_as_they_are() -> None:
    model = Aliased(lambda layer: None)
    model.held = notes = ["a", ("b", 1), {"c": 2}]
    rf.compress(model, rf.Ranks(2), inplace=True)
    assert model.held is notes
    assert notes == ["a", ("b", 1), {"c": 2}]


@pytest.mark.parametrize("inplace", [True, False])
def test_a_shared_module_stays_one_object_in_all_places(network: nn.Module, inplace: bool) -> None:
    small = rf.compress(network, rf.Ranks(2), inplace=inplace).model
    assert isinstance(small.again, nn.Sequential)
    assert small.again is small.heads["a"]


def test_a_shared_module_stands_once_in_the_plan(network: nn.Module) -> None:
    paths = [layer.path for layer in rf.plan(network, rf.Ranks(2)).layers]
    assert "heads.a" in paths
    assert "again" not in paths


def test_a_model_that_is_a_single_layer_is_replaced_as_a_whole() -> None:
    layer = nn.Linear(11, 7)
    x = torch.randn(3, 11)
    small = rf.compress(layer, rf.Ranks("full"), inputs=x)
    assert isinstance(small.model, nn.Sequential)
    torch.testing.assert_close(small.model(x), layer(x), rtol=0, atol=1e-5)


def test_a_single_layer_cannot_be_replaced_in_place_and_stays_as_it_was(
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    layer = nn.Linear(11, 7)
    with untouched(layer), pytest.raises(rf.RankfoldError, match="single layer"):
        rf.compress(layer, rf.Ranks(2), inplace=True)


def test_a_model_without_layers_is_copied() -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.ReLU())
    small = rf.compress(model, rf.VBMF())
    assert small.plan.layers == ()
    assert small.model is not model
    assert [type(m) for m in small.model] == [nn.BatchNorm1d, nn.ReLU]


def test_a_model_without_parameters_can_be_traced() -> None:
    assert rf.compress(nn.ReLU(), rf.VBMF(), inputs=torch.randn(3)).plan.layers == ()


def test_gradients_gathered_before_do_not_enter_the_result() -> None:
    model = nn.Sequential(nn.Linear(11, 7))
    model(torch.randn(3, 11)).sum().backward()
    small = rf.compress(model, rf.Ranks(2)).model
    assert all(p.grad is None for p in small.parameters())


def test_the_model_may_stand_in_inference_mode(network: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        small = rf.compress(network, rf.Ranks("full"), inputs=x)
    assert small.plan.replaced


def test_a_copy_of_the_original_gives_the_same_result(network: nn.Module) -> None:
    once = rf.compress(network, rf.Ratio(0.4)).model.state_dict()
    again = rf.compress(copy.deepcopy(network), rf.Ratio(0.4)).model.state_dict()
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_planned_totals_are_those_of_the_models(
    network: nn.Module, x: torch.Tensor, count: Callable[[nn.Module], int]
) -> None:
    small = rf.compress(network, rf.Ratio(0.4), inputs=x)
    assert small.plan.model_params == (count(network), count(small.model))


def test_planned_total_macs_are_those_of_the_models(
    network: nn.Module, x: torch.Tensor, measured_macs: Callable[..., int]
) -> None:
    network.eval()
    small = rf.compress(network, rf.Ratio(0.4), inputs=x)
    assert small.plan.macs == tuple(
        measured_macs(model, lambda model=model: model(x)) for model in (network, small.model)
    )


def test_a_chain_with_something_else_in_it_is_not_expanded() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16))
    small = rf.compress(model, rf.Ranks({"0": 8}))
    first, last = small.model[0]
    small.model[0] = nn.Sequential(first, nn.ReLU(), last)
    with pytest.raises(rf.RankfoldError, match=r"'0'.*ReLU stands in its chain"):
        small.expanded(model)
