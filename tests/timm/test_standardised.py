"""The layer rules for timm, on layers of the same form in its place."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import rankfold as rf


def padded(x: torch.Tensor, layer: Any) -> torch.Tensor:
    amounts = []
    for axis in (1, 0):
        size, stride = x.shape[2 + axis], layer.stride[axis]
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        amounts += [total // 2, total - total // 2]
    return functional.pad(x, amounts)


class Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as PyTorch has it
        return functional.linear(input, self.weight, self.bias)


class Conv2dSame(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = padded(x, self)
        return functional.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class StdConv2d(nn.Conv2d):
    same_pad = False
    eps = 1e-3

    def standardised(self) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1) if hasattr(self, "gain") else None
        scaled = functional.batch_norm(rows, None, None, gain, None, True, 0.0, self.eps)
        return scaled.reshape_as(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = padded(x, self) if self.same_pad else x
        weight = self.standardised()
        return functional.conv2d(
            x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class StdConv2dSame(StdConv2d):
    same_pad = True


class ScaledStdConv2d(StdConv2d):
    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(0.5 + torch.rand(self.out_channels, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5


class ScaledStdConv2dSame(ScaledStdConv2d):
    same_pad = True


class CondConv2d(nn.Module):
    """A mixture of four pointwise kernels that the input chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 7 * 6))

    def forward(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        weight = (routing @ self.weight).reshape(-1, 7, 6)
        return torch.einsum("boi,bihw->bohw", weight, x)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.routing = nn.Linear(6, 4)
        self.conv = CondConv2d()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.conv(x, self.routing(x.mean((2, 3))).sigmoid())
        return mixed


HOMES = {
    "linear": (Linear,),
    "conv2d_same": (Conv2dSame,),
    "std_conv": (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame),
    "cond_conv2d": (CondConv2d,),
}
CONVOLUTIONS = (*HOMES["conv2d_same"], *HOMES["std_conv"])


@pytest.fixture(autouse=True)
def _in_timms_place(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for name, classes in HOMES.items():
        home = ModuleType(f"timm.layers.{name}")
        for cls in classes:
            monkeypatch.setattr(cls, "__module__", home.__name__)
            setattr(home, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, home.__name__, home)


@pytest.fixture(params=CONVOLUTIONS, ids=lambda cls: cls.__name__)
def conv(request: pytest.FixtureRequest) -> nn.Sequential:
    return nn.Sequential(request.param(6, 7, (3, 2), stride=2, groups=1))


@pytest.fixture(params=HOMES["std_conv"], ids=lambda cls: cls.__name__)
def standardised(request: pytest.FixtureRequest) -> nn.Sequential:
    return nn.Sequential(request.param(6, 7, 3), nn.Conv2d(7, 5, 1))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 6, 9, 8)


def test_a_linear_of_timms_is_a_linear() -> None:
    original, x = nn.Sequential(Linear(11, 7)), torch.randn(3, 11)
    small = rf.compress(original, rf.Ranks("full"))
    assert [type(stage) for stage in small.model[0]] == [nn.Linear, nn.Linear]
    assert apart(small.model(x), original(x)) < 1e-5


@pytest.mark.parametrize("method", ["tucker2", "spatial_svd", "channel_svd"])
def test_full_rank_reproduces_a_convolution_at_every_size(conv: nn.Sequential, method: str) -> None:
    small = rf.compress(conv, rf.Ranks("full"), methods=(method,))
    assert small.plan["0"].method == method
    for height, width in ((9, 8), (8, 11), (5, 3)):
        x = torch.randn(2, 6, height, width)
        assert apart(small.model(x), conv(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_convolution_is_read_in_every_dtype(conv: nn.Sequential, dtype: torch.dtype) -> None:
    conv = conv.to(dtype)
    small = rf.compress(conv, rf.Ranks("full"), methods=("tucker2",))
    assert {p.dtype for p in small.model.parameters()} == {dtype}
    x = images().double()
    y = conv.double()(x)
    assert apart(small.model.double()(x), y) < 20 * torch.finfo(dtype).eps


def test_the_plan_says_that_a_standardisation_is_folded_in(standardised: nn.Sequential) -> None:
    plan = rf.plan(standardised, rf.Ranks(2))
    reason = "weight standardisation folded in: fine-tuning goes on without it"
    assert plan["0"].reason == reason
    assert plan["1"].reason == ""
    assert rf.apply(standardised, plan).plan["0"].reason == reason


def test_gains_that_are_folded_in_are_predicted_to_go(standardised: nn.Sequential) -> None:
    for policy in (rf.Ranks(2), rf.Ratio(0.9), rf.Budget(params=0.8)):
        small = rf.compress(standardised, policy)
        assert small.plan["0"].method is not None
        before, after = (
            sum(p.numel() for p in m.parameters()) for m in (standardised, small.model)
        )
        assert small.plan.model_params == (before, after)
        assert rf.plan(standardised, policy).model_params == (before, after)
        assert rf.apply(standardised, small.plan).plan.model_params == (before, after)


def test_a_gain_stays_with_a_layer_that_stays(standardised: nn.Sequential) -> None:
    count = sum(p.numel() for p in standardised.parameters())
    plan = rf.plan(standardised, rf.Ranks(2), exclude="0")
    assert plan["0"].params == (sum(p.numel() for p in standardised[0].parameters()),) * 2
    assert plan.model_params[0] == count


def test_a_fresh_model_is_loaded(conv: nn.Sequential, tmp_path: Any) -> None:
    small = rf.compress(conv, rf.Ranks(2))
    small.save(tmp_path / "small")
    x = images()
    assert torch.equal(rf.load(conv, tmp_path / "small")(x), small.model(x))


def test_a_layer_that_standardises_its_weight_is_not_refitted(
    standardised: nn.Sequential,
) -> None:
    original = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), *standardised)
    small = rf.compress(
        original,
        rf.Energy(0.9999),
        overrides={"0": rf.Ranks(1)},
        calibration=[images(16) for _ in range(2)],
    )
    assert small.plan["0"].method == "svd"
    kept, after = small.plan["2"], small.plan["3"]
    assert (kept.method, kept.refit) == (None, False)
    assert kept.reason.endswith("not refitted: its weight standardisation would change new values")
    assert torch.equal(small.model[2].weight, original[2].weight)
    assert after.refit


def test_a_standardisation_cannot_be_taken_out_of_a_chain(standardised: nn.Sequential) -> None:
    small = rf.compress(standardised, rf.Ranks(2))
    with pytest.raises(rf.RankfoldError, match="the weight standardisation of layer '0'"):
        small.expanded(standardised)


def test_a_checkpoint_compressed_without_the_standardisation_is_not_loaded(
    standardised: nn.Sequential, tmp_path: Any
) -> None:
    save_file(standardised.state_dict(), tmp_path / "model.safetensors")
    rf.compress_checkpoint(tmp_path / "model.safetensors", tmp_path / "small", rf.Ranks(2))
    with pytest.raises(rf.RankfoldError, match=r"layer '0' .* lack its weight standardisation"):
        rf.load(standardised, tmp_path / "small")


def test_a_checkpoint_of_same_convolutions_is_loaded(tmp_path: Any) -> None:
    original = nn.Sequential(Conv2dSame(6, 7, 3, stride=2))
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    rf.compress_checkpoint(tmp_path / "model.safetensors", tmp_path / "small", rf.Ranks("full"))
    x = images()
    assert apart(rf.load(original, tmp_path / "small")(x), original(x)) < 1e-5


def test_experts_of_a_conditional_convolution_become_mixtures_of_fewer() -> None:
    original, x = Conditional(), images()
    with torch.no_grad():
        original.conv.weight.copy_(torch.randn(4, 2) @ torch.randn(2, 42))
    small = rf.compress(original, rf.Ranks(2), include="conv.weight", inputs=x)
    assert small.plan["conv.weight"].params == (168, 92)
    assert apart(small.model(x), original(x)) < 1e-5
