"""Layers that must be left alone, each with its reason; and those that look so but need not be."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import rankfold as rf


class ReadsThroughALocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(20, 20)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = nn.functional.linear(x, layer.weight)
        return x


def total_weight(layer: nn.Linear) -> torch.Tensor:
    return layer.weight.sum()


class ReadsInAHelper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + total_weight(self.fc)


class ReadsSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 20)
        self.conv = nn.Conv1d(20, 16, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x.reshape(-1, self.fc.in_features)).reshape(1, self.fc.out_features, -1)
        return self.conv(y) * self.conv.stride[0]


class CallsWithOutputSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 12, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x, output_size=(10, 10))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


class TiedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 20)
        self.bias = self.head.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) + self.bias


class LoRA(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class WithScale(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("scale", torch.ones(1))


class BareMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.table


class ReadsTheFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * self.net[0].weight.mean()


def with_gradient_hook() -> nn.Module:
    layer = linear()
    layer.weight.register_hook(lambda gradient: gradient)
    return layer


def linear() -> nn.Linear:
    return nn.Linear(24, 20)


def filled(value: float) -> nn.Linear:
    layer = linear()
    nn.init.constant_(layer.weight, value)
    return layer


def hooked(register: str) -> nn.Module:
    layer = linear()
    getattr(layer, register)(lambda *anything: None)
    return layer


def pruned() -> nn.Module:
    return prune.l1_unstructured(linear(), "weight", 0.5)


def frozen_script() -> nn.Module:
    return torch.jit.script(nn.Sequential(linear()))


ENCODER = {"d_model": 24, "nhead": 3, "dim_feedforward": 40, "batch_first": True}
LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "attention": (lambda: nn.MultiheadAttention(24, 3), "out_proj", "nn.MultiheadAttention"),
    "attention itself": (lambda: nn.MultiheadAttention(24, 3), "", "nn.MultiheadAttention"),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(**ENCODER),
        "linear1",
        "its weight is read by TransformerEncoderLayer.forward",
    ),
    "read through a local": (ReadsThroughALocal, "layers.0", "its weight is read by"),
    "output_size": (CallsWithOutputSize, "up", "called with more than its input"),
    "tied embedding": (Tied, "embed", "tied: its weight is also 'head.weight'"),
    "tied head": (Tied, "head", "tied: its weight is also 'embed.weight'"),
    "tied bias": (TiedBias, "head", "tied: its bias is also 'bias'"),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(linear())), "0", "parametr"),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(linear())), "0", "parametr"),
    "spectral norm": (lambda: nn.Sequential(spectral_norm(linear())), "0", "is computed from"),
    "pruned": (pruned, "", "masked by pruning"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(7)), "0", "lazy: run the model once"),
    "meta": (lambda: nn.Linear(9, 7, device="meta"), "", "meta device"),
    "forward hook": (lambda: hooked("register_forward_hook"), "", "it has hooks"),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), "", "it has hooks"),
    "backward hook": (lambda: hooked("register_full_backward_hook"), "", "it has hooks"),
    "gradient hook": (with_gradient_hook, "", "it has hooks"),
    "read by index": (ReadsTheFirst, "net.0", "its weight is read by ReadsTheFirst.forward"),
    "own forward": (lambda: LoRA(24, 20), "", "LoRA has a forward of its own"),
    "further state": (lambda: WithScale(24, 20), "", "it holds scale besides"),
    "max_norm": (lambda: nn.Embedding(50, 16, max_norm=1.0), "", "max_norm renormalises"),
    "complex": (lambda: nn.Linear(24, 20, dtype=torch.complex64), "", "torch.complex64"),
    "recurrent": (lambda: nn.LSTM(8, 16), "", "recurrent"),
    "bare matrix": (BareMatrix, "", "no rule reads a BareMatrix"),
    "bilinear": (lambda: nn.Bilinear(5, 7, 9), "", "no rule reads a Bilinear"),
    "scripted child": (lambda: nn.ModuleList([frozen_script()]), "0.0", "RecursiveScriptModule"),
    "wrapped child": (
        lambda: nn.Sequential(nn.DataParallel(linear())),
        "0.module",
        "inside the DataParallel wrapper '0'",
    ),
    "compiled child": (
        lambda: nn.Sequential(torch.compile(linear())),
        "0._orig_mod",
        "inside the OptimizedModule wrapper '0'",
    ),
    "nan": (lambda: filled(float("nan")), "", "480 NaN or infinite values of 480"),
    "infinite": (lambda: filled(float("inf")), "", "NaN or infinite"),
    "zero": (lambda: filled(0.0), "", "all zero"),
    "one element": (lambda: nn.Linear(1, 1), "", "grew: parameters"),
}


@pytest.mark.parametrize("case", LEFT)
def test_it_is_left_alone_with_its_reason(case: str) -> None:
    make, path, reason = LEFT[case]
    model = make()
    small = rf.compress(model, rf.Ratio(0.5))
    assert small.plan[path].method is None
    assert reason in small.plan[path].reason
    assert type(small.model.get_submodule(path)) is type(model.get_submodule(path))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_model_with_the_old_weight_norm_is_copied_and_the_layer_left_alone() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(24, 20)), nn.Linear(20, 30))
    x = torch.randn(3, 24)
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert "is computed from" in small.plan["0"].reason
    assert small.plan["1"].method == "svd"
    torch.testing.assert_close(small.model(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
def test_quantized_layers_are_left_alone() -> None:
    engine = torch.backends.quantized.supported_engines[-1]
    torch.backends.quantized.engine = engine
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear()), {nn.Linear})
    plan = rf.plan(model, rf.Ratio(0.5))
    assert "quantized" in plan["0"].reason


def test_a_read_in_a_helper_is_seen_when_inputs_are_given() -> None:
    plan = rf.plan(ReadsInAHelper(), rf.Ratio(0.5), inputs=torch.randn(2, 24))
    assert plan["fc"].reason == "its weight is read from outside the layer"


def test_a_parent_that_reads_sizes_goes_on_working() -> None:
    model = ReadsSizes()
    x = torch.randn(2, 3, 24)
    for inputs in (None, x):
        small = rf.compress(model, rf.Ranks("full"), inputs=inputs, methods=("svd", "tucker2"))
        assert [layer.method for layer in small.plan.layers] == ["svd", "tucker2"]
        torch.testing.assert_close(small.model(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_layer_goes_on_working(training: bool) -> None:
    options = {**ENCODER, "dropout": 0.0}
    model = nn.Sequential(nn.TransformerEncoderLayer(**options), nn.Linear(24, 9)).train(training)
    x = torch.randn(2, 5, 24)
    small = rf.compress(model, rf.Ranks("full"))
    assert small.plan["1"].method == "svd"
    torch.testing.assert_close(small.model(x), model(x), atol=1e-4, rtol=1e-4)


def test_a_read_by_index_concerns_that_child_alone() -> None:
    assert rf.plan(ReadsTheFirst(), rf.Ratio(0.3))["net.1"].method == "svd"


def test_a_function_that_holds_a_module_by_closure_cannot_be_copied() -> None:
    model = nn.Sequential(linear())
    model.again = lambda x: model[0](x)
    with pytest.raises(rf.RankfoldError, match=r"'again' .* by closure.* pass inplace=True"):
        rf.compress(model, rf.Ratio(0.5))
    assert rf.compress(model, rf.Ratio(0.5), inplace=True).model is model


def test_warnings_of_the_framework_do_not_keep_a_layer_from_being_replaced() -> None:
    layer = nn.Conv2d(7, 11, 4, padding="same")
    assert rf.compress(layer, rf.Ranks(3), methods=["tucker2"]).plan[""].method == "tucker2"


def test_a_subclass_without_a_forward_of_its_own_is_replaced() -> None:
    class Plain(nn.Linear):
        pass

    assert rf.plan(Plain(24, 20), rf.Ratio(0.5))[""].method == "svd"


def test_a_patched_forward_is_left_alone() -> None:
    layer = linear()
    layer.forward = lambda x: x
    assert "forward of its own" in rf.plan(layer, rf.Ratio(0.5))[""].reason


def test_an_empty_weight_is_left_alone() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        layer = nn.Linear(0, 5)
    assert "empty" in rf.plan(layer, rf.VBMF())[""].reason


def test_masks_survive_in_the_copy() -> None:
    model = nn.Sequential(pruned(), nn.Linear(20, 30))
    small = rf.compress(model, rf.Ratio(0.5))
    assert torch.equal(small.model[0].weight_mask, model[0].weight_mask)
    x = torch.randn(2, 24)
    torch.testing.assert_close(small.model[0](x), model[0](x))


WRAPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (lambda: torch.compile(linear()), "compress model._orig_mod"),
    "data parallel": (lambda: nn.DataParallel(linear()), "compress model.module"),
    "scripted": (frozen_script, "compress the eager model"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapper_is_refused_with_the_remedy(case: str) -> None:
    make, message = WRAPPED[case]
    with pytest.raises(rf.RankfoldError, match=message):
        rf.plan(make(), rf.Ratio(0.5))


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(rf.RankfoldError, match=r"no adapter for a model of type builtins\.dict"):
        rf.plan({}, rf.Ratio(0.5))


def test_a_model_without_layers_has_an_empty_plan() -> None:
    small = rf.compress(nn.Sequential(nn.ReLU(), nn.Flatten()), rf.VBMF())
    assert small.plan.layers == ()


@pytest.mark.parametrize("case", LEFT)
def test_every_layer_left_alone_has_a_reason(case: str) -> None:
    for layer in rf.plan(LEFT[case][0](), rf.VBMF()).layers:
        assert layer.method is not None or layer.reason
