"""One network in PyTorch, NNX and Linen: the same weights under the same paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from torch import nn

X = np.random.default_rng(1).standard_normal((2, 9, 10, 5)).astype(np.float32)
PATHS = ("a", "b", "c")
"""Two convolutions, the first with a stride, and a matrix."""


def weights() -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels (*kernel, in, out) of two convolutions and a matrix, of low rank and some noise."""
    rng = np.random.default_rng(0)
    layers = []
    for shape in ((3, 3, 5, 24), (3, 3, 24, 30), (30, 40)):
        into, out = shape[-2:]
        rank = min(into, out) // 3
        core = rng.standard_normal((*shape[:-2], rank, rank))
        kernel = np.einsum(
            "ir,...rs,so->...io",
            rng.standard_normal((into, rank)),
            core,
            rng.standard_normal((rank, out)),
        )
        kernel = kernel / kernel.std() + 0.2 * rng.standard_normal(shape)
        layers.append((kernel.astype(np.float32) / 20, rng.standard_normal(out).astype(np.float32)))
    return layers


class LinenNet(linen.Module):
    def setup(self) -> None:
        self.a = linen.Conv(24, (3, 3), strides=2, padding=1)
        self.b = linen.Conv(30, (3, 3), padding="SAME")
        self.c = linen.Dense(40)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c(linen.relu(self.b(linen.relu(self.a(x)))).mean((1, 2)))


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Conv(5, 24, (3, 3), strides=2, padding=1, rngs=rngs)
        self.b = nnx.Conv(24, 30, (3, 3), padding="SAME", rngs=rngs)
        self.c = nnx.Linear(30, 40, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c(nnx.relu(self.b(nnx.relu(self.a(x)))).mean((1, 2)))


class TorchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(5, 24, 3, stride=2, padding=1)
        self.b = nn.Conv2d(24, 30, 3, padding="same")
        self.c = nn.Linear(30, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))


def in_torch() -> tuple[Any, Any]:
    model = TorchNet()
    for layer, (kernel, bias) in zip((model.a, model.b, model.c), weights(), strict=True):
        weight = np.moveaxis(kernel, (-1, -2), (0, 1))
        layer.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
        layer.bias.data = torch.from_numpy(bias)
    return model, torch.from_numpy(np.moveaxis(X, -1, 1).copy())


def in_nnx() -> tuple[Any, Any]:
    model = NNXNet(nnx.Rngs(0))
    for layer, (kernel, bias) in zip((model.a, model.b, model.c), weights(), strict=True):
        layer.kernel[...] = jnp.asarray(kernel)
        layer.bias[...] = jnp.asarray(bias)
    return model, jnp.asarray(X)


def in_linen() -> tuple[Any, Any]:
    params = {
        name: {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        for name, (kernel, bias) in zip("abc", weights(), strict=True)
    }
    return LinenNet().bind({"params": params}), jnp.asarray(X)


def _torch_state(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def _nnx_state(model: Any) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(value[...]) for path, value in flat}


def _linen_state(model: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(model.variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@dataclass(frozen=True)
class Framework:
    """What a journey needs of a framework.

    Attributes:
        name: of the adapter.
        network: makes the network and its inputs.
        state: all numbers of a model, by name.
    """

    name: str
    network: Callable[[], tuple[Any, Any]]
    state: Callable[[Any], dict[str, np.ndarray]]

    def same(self, left: Any, right: Any) -> bool:
        """Whether two models hold the same bits."""
        a, b = self.state(left), self.state(right)
        return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)

    def size(self, model: Any) -> int:
        """Number of parameters."""
        if isinstance(model, nn.Module):  # its state has the places of pivots as well
            return sum(parameter.numel() for parameter in model.parameters())
        return sum(array.size for array in self.state(model).values())

    def outputs(self, model: Any, x: Any) -> np.ndarray:
        """What a model makes of its inputs."""
        y = model(x)
        return y.detach().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)


FRAMEWORKS = {
    framework.name: framework
    for framework in (
        Framework("torch", in_torch, _torch_state),
        Framework("nnx", in_nnx, _nnx_state),
        Framework("linen", in_linen, _linen_state),
    )
}
