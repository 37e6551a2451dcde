"""What stands in place of a layer, and what must not change around it."""

import copy
import io
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rankfold as rf
from rankfold.ops.reference import forward
from rankfold_torch.adapter import TorchAdapter

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
METHODS = ("svd", "channel_svd", "spatial_svd", "tucker2", "cp", "cp3")
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}
STOCK = (nn.Linear, nn.Embedding, *CONVS.values(), *TRANSPOSED.values())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1),
        nn.BatchNorm2d(17),
        nn.ReLU(),
        nn.Conv2d(17, 23, (3, 5), stride=2, bias=False),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(23, 11),
    )


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    axes = draw(st.integers(1, 3))
    ints = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    groups = draw(st.integers(1, 3))
    into, out = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    kernel, stride, dilation = draw(ints), draw(ints), draw(ints)
    options = {
        "groups": groups,
        "dilation": dilation,
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
    }
    torch.manual_seed(draw(st.integers(0, 1000)))
    if draw(st.booleans()):
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        padding = [draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True)]
        layer = TRANSPOSED[axes](
            into, out, kernel, stride=stride, padding=padding, output_padding=extra, **options
        )
    else:
        padding = draw(st.sampled_from(["same", "valid"]) | st.just([p - 1 for p in draw(ints)]))
        if padding == "same":
            stride = [1] * axes
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        layer = CONVS[axes](
            into, out, kernel, stride=stride, padding=padding, padding_mode=mode, **options
        )
    return layer, torch.randn(2, into, *(9, 11, 10)[:axes], dtype=options["dtype"])


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(drawn=layers(), name=st.sampled_from(METHODS))
@settings(max_examples=50, deadline=None)
def test_random_geometry(drawn: tuple[nn.Module, torch.Tensor], name: str) -> None:
    layer, x = drawn
    op = TorchAdapter().read(layer, "")
    with torch.no_grad():
        y = layer(x)
        assert distance(torch.from_numpy(forward(op, x.double().numpy())), y) < TOLERANCE[x.dtype]
        full = rf.compress(layer, rf.Ranks("full"), inputs=x, methods=[name])
        if full.plan[""].method is None:
            assert full.plan[""].reason.startswith(name)
            return
        assert full.model(x).dtype == x.dtype
        assert distance(full.model(x), y) < TOLERANCE[x.dtype]
        small = rf.compress(layer, rf.Ranks(1), inputs=x, methods=[name])
        assert small.plan[""].params[1] == sum(p.numel() for p in small.model.parameters())
        restored = copy.deepcopy(layer).double()
        error = (small.model.double()(x.double()) - restored(x.double())).norm()
        assert torch.isfinite(error)


@pytest.mark.parametrize(("name", "placement"), list(product(METHODS, ["balanced", "classical"])))
def test_the_result_is_a_sequential_of_stock_layers(name: str, placement: str) -> None:
    layer = nn.Conv2d(7, 11, 1 if name == "svd" else 3)
    small = rf.compress(layer, rf.Ranks(2), methods=[name], placement=placement)
    assert isinstance(small.model, nn.Sequential)
    assert all(type(stage) in STOCK for stage in small.model)


@pytest.mark.parametrize("layer", [nn.Linear(13, 7), nn.Linear(7, 13, bias=False)])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), ()])
def test_linear_takes_inputs_of_any_rank(layer: nn.Linear, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, layer.in_features)
    small = rf.compress(layer, rf.Ranks("full"), inputs=x)
    torch.testing.assert_close(small.model(x), layer(x), atol=1e-5, rtol=1e-4)


def test_an_embedding_keeps_its_padding_row() -> None:
    layer = nn.Embedding(31, 12, padding_idx=3)
    small = rf.compress(layer, rf.Ranks(5)).model
    assert torch.equal(small(torch.tensor([3])), torch.zeros(1, 12))
    small(torch.arange(31)).sum().backward()
    assert torch.equal(small[0].weight.grad[3], torch.zeros(5))


def test_bias_is_on_the_last_stage_alone_and_bit_equal() -> None:
    model = network()
    small = rf.compress(model, rf.Ratio(0.5)).model
    assert all(stage.bias is None for stage in (*small[0][:-1], *small[3]))
    assert torch.equal(small[0][-1].bias, model[0].bias)


def test_dtype_device_mode_and_gradient_flags_are_kept() -> None:
    model = network().to(torch.float64)
    model[0].weight.requires_grad_(False)
    model[7].bias.requires_grad_(False)
    model[3].eval()
    small = rf.compress(model, rf.Ratio(0.5), include="*").model
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert [stage.weight.requires_grad for stage in small[0]] == [False] * len(small[0])
    assert small[0][-1].bias.requires_grad
    assert [stage.weight.requires_grad for stage in small[7]] == [True, True]
    assert not small[7][-1].bias.requires_grad
    assert [stage.training for stage in (*small[3], *small[0])].count(False) == len(small[3])


@pytest.mark.parametrize("axes", [2, 3])
def test_channels_last_is_kept(axes: int) -> None:
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[axes]
    layer = CONVS[axes](7, 11, 3).to(memory_format=layout)
    core = rf.compress(layer, rf.Ranks(5), methods=["tucker2"]).model[1]
    assert core.weight.is_contiguous(memory_format=layout)
    assert not core.weight.is_contiguous()


@pytest.mark.parametrize("traced", [False, True])
def test_the_original_is_untouched(traced: bool) -> None:
    model = network().train()
    x = torch.randn(2, 3, 12, 13)
    state = copy.deepcopy(model.state_dict())
    structure, random = str(model), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    inputs = x if traced else None
    rf.plan(model, rf.VBMF(), inputs=inputs)
    small = rf.compress(model, rf.Ratio(0.3), inputs=inputs)
    assert str(model) == structure
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in small.model.state_dict().values())


def test_inplace_changes_the_model_and_every_reference_in_it() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(24, 24)
            self.b = self.a
            self.listed = [self.a]
            self.named = {"a": self.a}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.named["a"](self.listed[0](self.b(self.a(x))))

    for inplace in (True, False):
        model = Shared()
        x = torch.randn(3, 24)
        before = model(x)
        small = rf.compress(model, rf.Ranks("full"), inputs=x, inplace=inplace)
        assert (small.model is model) == inplace
        assert small.model.a is small.model.b is small.model.listed[0] is small.model.named["a"]
        assert isinstance(small.model.a, nn.Sequential)
        assert small.plan["a"].macs[0] == 4 * 3 * 24 * 24
        torch.testing.assert_close(small.model(x), before, atol=1e-4, rtol=1e-4)


def test_inplace_on_a_single_layer_is_refused() -> None:
    with pytest.raises(rf.RankfoldError, match="single layer"):
        rf.compress(nn.Linear(24, 20), rf.Ranks(2), inplace=True)


def test_planned_parameters_and_macs_are_those_of_the_built_model() -> None:
    model = network().eval()
    x = torch.randn(2, 3, 12, 13)
    small = rf.compress(model, rf.Ratio(0.4), inputs=x, methods=("svd", "tucker2"))
    assert small.plan.model_params == tuple(
        sum(p.numel() for p in m.parameters()) for m in (model, small.model)
    )
    counted = 0

    def count(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() // output.shape[1] * module.weight.numel()

    for module in small.model.modules():
        if isinstance(module, STOCK):
            module.register_forward_hook(count)
    small.model(x)
    assert small.plan.macs[1] == counted


def test_tracing_leaves_batch_norm_and_buffers_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 20)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.fc(x)

    model = Counting().train()
    rf.plan(model, rf.VBMF(), inputs=torch.randn(2, 24))
    assert model.calls == 0
    assert model.training


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(24, 20), nn.Linear(16, 20)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.left(input=a) + self.right(b)


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_inputs_may_be_positional_or_named(kind: type) -> None:
    given = {"a": torch.randn(3, 24), "b": torch.randn(3, 16)}
    inputs = given if kind is dict else kind(given.values())
    plan = rf.plan(TwoInputs(), rf.Ratio(0.5), inputs=inputs)
    assert [layer.macs[0] for layer in plan.layers] == [3 * 24 * 20, 3 * 16 * 20]


def test_inputs_the_model_fails_on_are_an_error_with_the_cause() -> None:
    model = TwoInputs()
    with pytest.raises(rf.RankfoldError, match="inputs: the model fails on them with RuntimeError"):
        rf.plan(model, rf.Ratio(0.5), inputs=(torch.randn(3, 5), torch.randn(3, 16)))
    assert not model.left._forward_hooks


def test_unbatched_convolutions_are_counted() -> None:
    plan = rf.plan(nn.Conv2d(7, 11, 3), rf.Ratio(0.5), inputs=torch.randn(7, 9, 8))
    assert plan[""].macs[0] == 7 * 11 * 9 * 7 * 6


def test_a_stage_at_input_resolution_counts_against_the_layer() -> None:
    layer = nn.Conv2d(64, 32, 3, stride=4)
    x = torch.randn(1, 64, 33, 33)
    plan = rf.plan(layer, rf.Ratio(0.9), inputs=x, methods=["tucker2"])
    assert plan[""].method is None
    assert plan[""].reason.startswith("grew:")


def test_the_result_works_with_the_framework() -> None:
    model = network().eval()
    x = torch.randn(2, 3, 12, 13)
    small = rf.compress(model, rf.Ratio(0.4), inputs=x).model
    y = small(x)
    torch.testing.assert_close(torch.compile(small, backend="eager")(x), y)
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), y)
    torch.testing.assert_close(copy.deepcopy(small)(x), y)
    stream = io.BytesIO()
    torch.save(small, stream)
    stream.seek(0)
    torch.testing.assert_close(torch.load(stream, weights_only=False)(x), y)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small.train()(x).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in small.parameters())
    optimizer.step()
    assert distance(small.eval()(x), y) > 0


def test_a_compressed_model_can_be_compressed_again() -> None:
    model = network().eval()
    x = torch.randn(2, 3, 12, 13)
    once = rf.compress(model, rf.Ratio(0.6), inputs=x)
    twice = rf.compress(once.model, rf.Ratio(0.6), inputs=x)
    assert twice.plan.model_params[1] < once.plan.model_params[1]
    assert twice.model(x).shape == model(x).shape


@pytest.mark.parametrize("fault", ["stride", "weight", "bias", "order"])
def test_a_wrongly_built_chain_never_reaches_the_user(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankfold_torch.layers import stock as torch_layers

    build = torch_layers.build

    def wrong(chain: object, like: nn.Module) -> nn.Sequential:
        built = build(chain, like)
        if fault == "stride":
            built[1].stride = (1, 1)
        elif fault == "weight":
            built[0].weight.data.mul_(1.01)
        elif fault == "bias":
            built[-1].bias = None
        else:
            built[1].weight.data = built[1].weight.data.flip(2)
        return built

    monkeypatch.setattr(torch_layers, "build", wrong)
    model = nn.Conv2d(7, 11, (3, 5), stride=(2, 1), padding=1)
    small = rf.compress(model, rf.Ranks(4), methods=["tucker2"])
    assert small.plan[""].method is None
    assert "the built module" in small.plan[""].reason
    assert small.plan[""].params[0] == small.plan[""].params[1]
    assert type(small.model) is nn.Conv2d
