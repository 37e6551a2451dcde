"""What users do with a compressed model afterwards."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rankfold as rf

QUIET = (
    "ignore:`torch.jit.trace:DeprecationWarning",
    "ignore:`torch.jit.script:DeprecationWarning",
    "ignore:`torch.jit.trace_method:DeprecationWarning",
    "ignore:`torch.jit.script_method:DeprecationWarning",
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 13, (3, 4), 2)
        self.norm = nn.BatchNorm2d(13)
        self.up = nn.ConvTranspose2d(13, 11, 3, 2, 1, 1)
        self.head = nn.Linear(11, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.norm(self.conv(x)).relu()).mean((2, 3)))


METHODS = {
    "tucker2": ("svd", "tucker2"),
    "channel_svd": ("svd", "channel_svd"),
    "spatial_svd": ("svd", "spatial_svd"),
    "cp": ("svd", "cp"),
    "cp3": ("svd", "cp3"),
}


# For what takes long: the plainest chain, and the one with depthwise stages.
few_methods = pytest.mark.parametrize("method", ["channel_svd", "cp"])


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@cache
def compressed(method: str) -> nn.Module:
    small = rf.compress(Network().eval(), rf.Ranks(3), methods=METHODS[method])
    assert len(small.plan.replaced) == 3
    return small.model


@pytest.fixture
def small(method: str) -> nn.Module:
    return copy.deepcopy(compressed(method))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 17, 16)


@few_methods
@pytest.mark.filterwarnings(*QUIET)
def test_it_can_be_traced(small: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(torch.jit.trace(small, x)(x), small(x))


@pytest.mark.filterwarnings(*QUIET)
def test_its_replacements_can_be_scripted(small: nn.Module) -> None:
    x = torch.randn(2, 11)
    torch.testing.assert_close(torch.jit.script(small.head)(x), small.head(x))


@few_methods
@pytest.mark.filterwarnings(*QUIET)
def test_it_compiles_without_graph_breaks(small: nn.Module, x: torch.Tensor) -> None:
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), small(x))


@few_methods
@pytest.mark.filterwarnings(*QUIET)
def test_it_can_be_exported(small: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), small(x))


def test_it_can_be_symbolically_traced(small: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(torch.fx.symbolic_trace(small)(x), small(x))


def test_it_can_be_deep_copied(small: nn.Module, x: torch.Tensor) -> None:
    assert torch.equal(copy.deepcopy(small)(x), small(x))


def test_its_replacements_can_be_pickled(small: nn.Module, x: torch.Tensor) -> None:
    replaced = small.conv
    restored = pickle.loads(pickle.dumps(replaced))
    assert torch.equal(restored(x), replaced(x))


def test_its_state_dict_goes_into_a_copy(small: nn.Module, x: torch.Tensor) -> None:
    other = copy.deepcopy(small)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    stream = io.BytesIO()
    torch.save(small.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(x), small(x))


def test_every_parameter_gets_a_finite_gradient(small: nn.Module, x: torch.Tensor) -> None:
    small.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_of_an_optimizer_lowers_the_loss(
    optimizer: type[torch.optim.Optimizer], small: nn.Module, x: torch.Tensor
) -> None:
    steps = optimizer(small.parameters(), lr=1e-3)
    before = small(x).square().mean()
    before.backward()
    steps.step()
    assert small(x).square().mean() < before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_can_be_cast(
    dtype: torch.dtype, small: nn.Module, x: torch.Tensor, distance: Callable[..., float]
) -> None:
    y = small(x)
    assert distance(small.to(dtype)(x.to(dtype)), y) < 20 * max(torch.finfo(dtype).eps, 1e-6)


def test_it_can_be_made_channels_last(small: nn.Module, x: torch.Tensor) -> None:
    y = small(x)
    last = small.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), y)


def test_it_can_be_moved_to_the_meta_device_and_back(small: nn.Module, x: torch.Tensor) -> None:
    state, y = copy.deepcopy(small.state_dict()), small(x)
    empty = small.to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty(x), y)


def test_it_works_under_autocast(small: nn.Module, x: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small(x).isfinite().all()


def test_it_works_with_functional_calls(small: nn.Module, x: torch.Tensor) -> None:
    y = torch.func.functional_call(small, dict(small.named_parameters()), (x,))
    assert torch.equal(y, small(x))


def test_its_layers_can_be_pruned(small: nn.Module, x: torch.Tensor) -> None:
    prune.l1_unstructured(small.head[0], "weight", 0.5)
    assert small(x).isfinite().all()


def test_its_layers_can_be_parametrized(small: nn.Module, x: torch.Tensor) -> None:
    y = small(x)
    nn.utils.parametrizations.weight_norm(small.head[0])
    torch.testing.assert_close(small(x), y)


def test_replacements_take_hooks(small: nn.Module, x: torch.Tensor) -> None:
    seen: list[Any] = []
    small.head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    small(x)
    assert seen == [(2, 7)]


def test_replacements_can_be_frozen_as_one(small: nn.Module) -> None:
    small.conv.requires_grad_(False)
    assert not any(p.requires_grad for p in small.conv.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_it_can_be_quantized(small: nn.Module, x: torch.Tensor) -> None:
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    quantized = torch.ao.quantization.quantize_dynamic(small, {nn.Linear})
    assert type(quantized.head[0]).__module__.startswith("torch.ao.nn.quantized")
    assert quantized(x).shape == (2, 7)


def test_threads_may_use_it(small: nn.Module, x: torch.Tensor) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with torch.no_grad(), ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: small(x), range(4)))
    assert all(torch.equal(y, results[0]) for y in results)
