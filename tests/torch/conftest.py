"""What the tests of the PyTorch backend share."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import nn

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def raw(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    plain = dense.cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def state(model: nn.Module) -> dict[str, Any]:
    """Everything a call that promises not to touch the model must leave as it is."""
    found: dict[str, Any] = {
        "torch random state": raw(torch.get_rng_state()),
        "numpy random state": repr(np.random.get_state()),
        "python random state": random.getstate(),
    }
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"{path}: class"] = type(module)
        found[f"{path}: identity"] = id(module)
        found[f"{path}: mode"] = module.training
        found[f"{path}: attributes"] = sorted(vars(module))
        found[f"{path}: hooks"] = [len(getattr(module, name)) for name in HOOKS]
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            found[f"{path}.{name}: identity"] = id(tensor)
            found[f"{path}.{name}: requires_grad"] = tensor.requires_grad
            found[f"{path}.{name}: grad"] = None if tensor.grad is None else raw(tensor.grad)
            if tensor.device.type != "meta" and not nn.parameter.is_lazy(tensor):
                found[f"{path}.{name}: values"] = raw(tensor)
    return found


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    before = state(model)
    yield
    after = state(model)
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert not changed


@pytest.fixture
def untouched() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """A context that asserts that a model and the random states leave it as they entered."""
    return _untouched


@pytest.fixture
def distance() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The distance of two tensors of one shape, relative to the second."""

    def relative(a: torch.Tensor, b: torch.Tensor) -> float:
        assert a.shape == b.shape
        a, b = a.detach(), b.detach()
        size = float(b.double().norm())
        apart = float((a.double() - b.double()).norm())
        return apart / size if size else apart

    return relative


@pytest.fixture
def count() -> Callable[[nn.Module], int]:
    """The number of parameters, shared ones counted once."""
    return lambda module: sum(p.numel() for p in module.parameters())


@pytest.fixture
def measured_macs() -> Callable[..., int]:
    """Multiply-accumulates of all stock layers of a module while something runs."""

    def measure(module: nn.Module, run: Callable[[], object]) -> int:
        total = 0

        def add(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            nonlocal total
            if isinstance(layer, nn.Linear):
                total += output.numel() * layer.in_features
            elif isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                total += inputs[0].numel() * layer.weight[0].numel()
            else:
                total += output.numel() * layer.weight[0].numel()

        layers = (nn.Linear, nn.modules.conv._ConvNd)
        handles = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, layers)]
        with torch.no_grad():
            run()
        for handle in handles:
            handle.remove()
        return total

    return measure
