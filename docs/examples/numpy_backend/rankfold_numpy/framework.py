"""The framework: dense layers and convolutions in one dimension, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(eq=False)
class Dense:
    """Output x @ kernel + bias, with a kernel (in, out)."""

    kernel: Array
    bias: Array | None = None
    training: bool = False

    def __call__(self, x: Array) -> Array:
        y: Array = x @ self.kernel
        return y if self.bias is None else y + self.bias


@dataclass(eq=False)
class Conv1D:
    """Convolution over (batch, length, channels), with a kernel (length, in/groups, out)."""

    kernel: Array
    bias: Array | None = None
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    training: bool = False

    def __call__(self, x: Array) -> Array:
        taps, into, out = self.kernel.shape
        x = np.pad(x, ((0, 0), self.padding, (0, 0)))
        length = (x.shape[1] - self.dilation * (taps - 1) - 1) // self.stride + 1
        x = x.reshape(*x.shape[:2], self.groups, into)
        kernel = self.kernel.reshape(taps, into, self.groups, out // self.groups)
        y: Array = np.zeros((x.shape[0], length, self.groups, out // self.groups), x.dtype)
        for tap in range(taps):
            start = tap * self.dilation
            window = x[:, start : start + (length - 1) * self.stride + 1 : self.stride]
            y = y + np.einsum("blgi,igo->blgo", window, kernel[tap])
        y = y.reshape(*y.shape[:2], out)
        return y if self.bias is None else y + self.bias


@dataclass(eq=False)
class Model:
    """Layers, or models, one after the other."""

    layers: list[Dense | Conv1D | Model] = field(default_factory=list)

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x
