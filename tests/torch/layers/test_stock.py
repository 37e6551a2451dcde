"""Every stock layer at any geometry: read into an op, decomposed and built again.

Sizes are distinct: no channel count, kernel or extent of a case equals another.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import rankfold as rf
from rankfold.ops import Op
from rankfold.ops.reference import forward, reconstruct
from rankfold.plugins.registry import registry
from rankfold_torch.adapter import TorchAdapter

METHODS = ("svd", "channel_svd", "spatial_svd", "tucker2", "cp", "cp3")
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EXTENTS = (11, 13, 9)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.usefixtures("few_sweeps"),
]
drawn = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def per_axis(axes: int, values: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[values] * axes)


@st.composite
def convs(draw: st.DrawFn, pointwise: bool = False) -> nn.Module:
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel = draw(per_axis(axes, st.integers(1, 1 if pointwise else 4)))
    stride = draw(per_axis(axes, st.integers(1, 3)))
    dilation = draw(per_axis(axes, st.integers(1, 2)))
    padding = draw(
        st.one_of(
            st.integers(0, 2), per_axis(axes, st.integers(0, 3)), st.sampled_from(("same", "valid"))
        )
    )
    if padding == "same":
        stride = (1,) * axes
    mode = draw(st.sampled_from(("zeros", "zeros", "reflect", "replicate", "circular")))
    return CONV[axes](
        groups * draw(st.sampled_from((5, 7))),
        groups * draw(st.sampled_from((3, 8))),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )


@st.composite
def transposed(draw: st.DrawFn) -> nn.Module:
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    stride = draw(per_axis(axes, st.integers(1, 3)))
    dilation = draw(per_axis(axes, st.integers(1, 2)))
    limits = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    return TRANSPOSED[axes](
        groups * draw(st.sampled_from((5, 7))),
        groups * draw(st.sampled_from((3, 8))),
        draw(per_axis(axes, st.integers(1, 4))),
        stride=stride,
        padding=draw(st.one_of(st.integers(0, 2), per_axis(axes, st.integers(0, 3)))),
        output_padding=tuple(draw(st.integers(0, limit)) for limit in limits),
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def matrices(draw: st.DrawFn) -> nn.Module:
    rows, columns = draw(st.sampled_from(((5, 13), (13, 5), (7, 11), (11, 3))))
    if draw(st.booleans()):
        return nn.Linear(columns, rows, bias=draw(st.booleans()))
    return nn.Embedding(rows, columns, padding_idx=draw(st.sampled_from((None, 2))))


def layers(method: str) -> st.SearchStrategy[nn.Module]:
    """Layers that a method does something with, and some that it refuses."""
    if method == "svd":
        return st.one_of(matrices(), matrices(), convs(pointwise=True), transposed())
    return st.one_of(convs(), convs(), transposed(), matrices())


def as_op(layer: Any) -> Op:
    """The op of a stock layer, written down independently of the adapter."""
    weight = layer.weight.detach().double().numpy()
    bias = None if getattr(layer, "bias", None) is None else layer.bias.detach().double().numpy()
    if isinstance(layer, nn.Embedding):
        return rf.Embedding(weight)
    if isinstance(layer, nn.Linear):
        return rf.Linear(weight, bias)
    shared = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if isinstance(layer, tuple(CONV.values())):
        mode = layer.padding_mode
        return rf.Conv(weight, bias, padding=layer.padding, padding_mode=mode, **shared)
    groups = np.split(weight, layer.groups)
    weight = np.concatenate([group.swapaxes(0, 1) for group in groups])
    extra = layer.output_padding
    return rf.ConvTranspose(weight, bias, padding=layer.padding, output_padding=extra, **shared)


def probe(layer: Any) -> torch.Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.randint(0, layer.num_embeddings, (2, 6))
    if isinstance(layer, nn.Linear):
        return torch.randn(2, 6, layer.in_features, dtype=torch.float64)
    axes = layer.weight.ndim - 2
    return torch.randn(2, layer.in_channels, *EXTENTS[:axes], dtype=torch.float64)


def exact(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output in float64, so that only the rounding of weights shows."""
    with torch.no_grad():
        return copy.deepcopy(module).double()(x)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def applies(method: str, layer: nn.Module) -> bool:
    return registry().methods([method])[method].refuse(as_op(layer)) is None


def dense(layer: nn.Module, chain: nn.Module) -> nn.Module:
    """The layer's own class with the kernel that the built chain stands for, in float64."""
    stages = [as_op(stage) for stage in chain if hasattr(stage, "weight")]
    weight = reconstruct(as_op(layer), stages)
    if isinstance(layer, tuple(TRANSPOSED.values())):
        split = np.split(weight, layer.groups)
        weight = np.concatenate([group.swapaxes(0, 1) for group in split])
    copied = copy.deepcopy(layer).double()
    assert copied.weight.shape == weight.shape
    copied.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
    return copied


@pytest.mark.parametrize("method", METHODS)
@drawn
@given(data=st.data())
def test_full_rank_reproduces_the_layer(method: str, data: st.DataObject) -> None:
    layer = data.draw(layers(method))
    model = nn.Sequential(layer.double())
    small = rf.compress(model, rf.Ranks("full"), methods=[method])
    x = probe(layer)
    assert small.plan["0"].method == (method if applies(method, layer) else None)
    assert off(exact(small.model, x), exact(model, x)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
@drawn
@given(data=st.data())
def test_reduced_rank_is_the_original_class_with_the_reconstructed_kernel(
    method: str, data: st.DataObject
) -> None:
    layer = data.draw(layers(method).filter(lambda layer: applies(method, layer)))
    model = nn.Sequential(layer.double())
    small = rf.compress(model, rf.Ranks(2), methods=[method])
    x = probe(layer)
    assert small.plan["0"].ranks[0] == 2
    assert off(exact(small.model, x), exact(dense(layer, small.model[0]), x)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
@drawn
@given(data=st.data())
def test_the_announced_error_is_that_of_the_built_weights(method: str, data: st.DataObject) -> None:
    layer = data.draw(layers(method).filter(lambda layer: applies(method, layer)))
    small = rf.compress(nn.Sequential(layer.double()), rf.Ranks(2), methods=[method])
    built = dense(layer, small.model[0])
    assert off(built.weight.data, layer.weight.data) == pytest.approx(
        small.plan["0"].error, rel=1e-5, abs=1e-7
    )


@drawn
@given(layer=st.one_of(convs(), transposed(), matrices()))
def test_the_reference_of_the_op_read_is_the_layer(layer: nn.Module) -> None:
    model = nn.Sequential(layer.double())
    x = probe(layer)
    expected = exact(model, x)
    assert off(torch.from_numpy(forward(TorchAdapter().read(model, "0"), x.numpy())), expected) < (
        1e-12
    )


@drawn
@given(layer=st.one_of(convs(), transposed(), matrices()))
def test_the_op_read_has_the_geometry_of_the_layer(layer: nn.Module) -> None:
    op, expected = TorchAdapter().read(nn.Sequential(layer.double()), "0"), as_op(layer)
    fields = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding")
    assert type(op) is type(expected)
    assert [getattr(op, f, None) for f in fields] == [getattr(expected, f, None) for f in fields]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(drawn, max_examples=4)
@given(data=st.data())
def test_every_dtype_is_reproduced_up_to_its_rounding(
    dtype: torch.dtype, method: str, data: st.DataObject
) -> None:
    layer = data.draw(layers(method).filter(lambda layer: applies(method, layer)))
    model = nn.Sequential(layer.to(dtype))
    small = rf.compress(model, rf.Ranks("full"), methods=[method])
    x = probe(layer)
    assert small.plan["0"].method == method
    assert {p.dtype for p in small.model.parameters()} == {dtype}
    assert off(exact(small.model, x), exact(model, x)) < 20 * torch.finfo(dtype).eps


TABLE = {
    "linear": (lambda: nn.Linear(11, 7), ("svd",)),
    "linear without bias": (lambda: nn.Linear(7, 11, bias=False), ("svd",)),
    "tall embedding": (lambda: nn.Embedding(17, 6), ("svd",)),
    "wide embedding": (lambda: nn.Embedding(6, 17), ("svd",)),
    "pointwise": (lambda: nn.Conv2d(11, 7, 1, stride=(2, 3), padding=(1, 2)), METHODS),
    "1-d": (lambda: nn.Conv1d(5, 7, 4, stride=3, padding=2, dilation=2), METHODS),
    "2-d": (lambda: nn.Conv2d(5, 7, (4, 3), stride=(2, 1), padding=(3, 2)), METHODS),
    "3-d": (lambda: nn.Conv3d(3, 5, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 2)), METHODS),
    "depthwise": (lambda: nn.Conv2d(7, 7, (5, 3), groups=7, padding=(2, 1)), METHODS),
    "multiplied depthwise": (lambda: nn.Conv2d(7, 14, (5, 3), groups=7), METHODS),
    "grouped": (lambda: nn.Conv2d(10, 14, 3, groups=2, stride=2, padding=1), METHODS),
    "same, even": (lambda: nn.Conv2d(5, 7, (4, 2), padding="same"), METHODS),
    "same, reflect": (
        lambda: nn.Conv2d(5, 7, (4, 3), padding="same", padding_mode="reflect"),
        METHODS,
    ),
    "circular": (lambda: nn.Conv2d(5, 7, 3, padding=(2, 1), padding_mode="circular"), METHODS),
    "one output channel": (lambda: nn.Conv2d(5, 1, 3), METHODS),
    "one input channel": (lambda: nn.Conv2d(1, 7, 3), METHODS),
    "transposed 1-d": (
        lambda: nn.ConvTranspose1d(5, 7, 4, stride=3, padding=1, output_padding=2),
        METHODS,
    ),
    "transposed 2-d": (
        lambda: nn.ConvTranspose2d(5, 7, (4, 3), stride=(2, 3), padding=(1, 0), dilation=(1, 2)),
        METHODS,
    ),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(3, 5, (2, 3, 1), stride=2), METHODS),
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(10, 14, 3, stride=2, groups=2, output_padding=1),
        METHODS,
    ),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(7, 7, 4, stride=2, groups=7), METHODS),
}
CASES = [(name, method) for name, (_, methods) in TABLE.items() for method in methods]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_full_rank_reproduces_common_layers(name: str, method: str) -> None:
    layer = TABLE[name][0]()
    model = nn.Sequential(layer)
    small = rf.compress(model, rf.Ranks("full"), methods=[method])
    x = probe(layer)
    assert small.plan["0"].method == (method if applies(method, layer) else None)
    assert off(exact(small.model, x), exact(model, x)) < 2e-6


@pytest.mark.parametrize("shape", [(11,), (2, 11), (2, 3, 11), (2, 3, 5, 11)], ids=len)
def test_a_linear_takes_inputs_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(11, 7).double()
    small = rf.compress(layer, rf.Ranks("full"))
    x = torch.randn(shape, dtype=torch.float64)
    assert off(small.model(x).detach(), layer(x).detach()) < 1e-12


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kinds", [CONV, TRANSPOSED], ids=["conv", "transposed"])
def test_a_convolution_takes_an_input_without_batch_axis(
    axes: int, kinds: dict[int, type[nn.Module]]
) -> None:
    layer = kinds[axes](5, 7, 3, stride=2, padding=1).double()
    small = rf.compress(layer, rf.Ranks("full"), methods=["tucker2"])
    x = torch.randn(5, *EXTENTS[:axes], dtype=torch.float64)
    assert off(small.model(x).detach(), layer(x).detach()) < 1e-10


@pytest.mark.parametrize("rows", [7, 17], ids=["wide", "tall"])
@pytest.mark.parametrize("rank", [2, "full"])
def test_the_padding_row_of_an_embedding_stays_zero(rows: int, rank: Any) -> None:
    layer = nn.Embedding(rows, 11, padding_idx=3)
    small = rf.compress(layer, rf.Ranks(rank))
    assert torch.equal(small.model(torch.tensor([3])), torch.zeros(1, 11))


def test_the_padding_row_of_an_embedding_gets_no_gradient() -> None:
    small = rf.compress(nn.Embedding(17, 11, padding_idx=3), rf.Ranks(2)).model
    small(torch.tensor([[1, 3, 5]])).sum().backward()
    gradient = small[0].weight.grad
    assert not gradient[3].any()
    assert gradient[1].any()


def test_a_padding_row_that_is_not_zero_is_reproduced() -> None:
    layer = nn.Embedding(17, 11, padding_idx=3)
    layer.weight.data[3] = 1.0
    small = rf.compress(layer, rf.Ranks("full"))
    x = torch.tensor([3, 5])
    torch.testing.assert_close(small.model(x), layer(x), rtol=0, atol=1e-5)


def test_a_sparse_embedding_keeps_sparse_gradients() -> None:
    small = rf.compress(nn.Embedding(17, 11, sparse=True), rf.Ranks(2)).model
    small(torch.tensor([1, 5])).sum().backward()
    assert small[0].weight.grad.is_sparse


class PadsItself(nn.Conv2d):
    """Pads to the size of the input over the stride."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = [(-(-n // 2) - 1) * 2 + k - n for n, k in zip(x.shape[2:], (5, 5), strict=True)]
        sides = [side for extra in reversed(sizes) for side in (extra // 2, extra - extra // 2)]
        return nn.functional.conv2d(nn.functional.pad(x, sides), self.weight, self.bias, 2)


class Adds(nn.Linear):
    """As a low-rank adapter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.weight[:2].T @ self.weight[:, :2].T


COUNTED = {
    "smaller than the kernel": (PadsItself(3, 7, 5, stride=2), (2, 3, 4, 3), 2 * 2 * 2 * 7 * 75),
    "larger": (PadsItself(3, 7, 5, stride=2), (1, 3, 11, 9), 6 * 5 * 7 * 75),
    "more than its weight": (Adds(11, 11), (5, 11), 5 * (121 + 2 * 22)),
    "a vector": (Adds(11, 11), (11,), 121 + 2 * 22),
}


@pytest.mark.parametrize("case", COUNTED)
def test_macs_of_a_layer_with_a_forward_of_its_own_are_those_of_its_operations(case: str) -> None:
    layer, shape, macs = COUNTED[case]
    plan = rf.plan(nn.Sequential(layer), rf.Ranks(2), inputs=torch.randn(shape))
    assert "forward of its own" in plan["0"].reason
    assert plan["0"].macs == (macs, macs)


def test_probes_run_on_one_thread_and_leave_the_others_as_they_were() -> None:
    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            threads.append(torch.get_num_threads())
            return super().forward(x)

    threads: list[int] = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        TorchAdapter().run(Counting(3, 2), np.ones((4, 3)))
        assert threads == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
