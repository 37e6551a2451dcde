from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.adapters.base import Adapter
from rankfold.ops import Op, channels, geometry
from rankfold.testing import Harness, Unsupported
from rankfold.testing.suite import AdapterSuite
from rankfold_torch.adapter import TorchAdapter

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def layer(op: Op) -> nn.Module:
    out, into = channels(op)
    if isinstance(op, rf.Embedding):
        made: Any = nn.Embedding(into, out)
    elif isinstance(op, rf.Linear):
        made = nn.Linear(into, out, bias=op.bias is not None)
    else:
        geo = geometry(op)
        padding = geo.padding
        if not isinstance(padding, str):
            if any(low != high for low, high in padding):
                raise Unsupported("asymmetric padding")
            padding = tuple(low for low, _ in padding)
        options: dict[str, Any] = {
            "stride": geo.stride,
            "padding": padding,
            "dilation": geo.dilation,
            "groups": op.groups,
            "bias": op.bias is not None,
        }
        if isinstance(op, rf.ConvTranspose):
            make: Any = TRANSPOSED[geo.axes]
            options["output_padding"] = geo.output_padding
        else:
            make = CONVS[geo.axes]
        made = make(into, out, geo.kernel, **options)
    weight = op.weight
    if isinstance(op, rf.ConvTranspose):
        weight = weight.swapaxes(0, 1)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        if op.bias is not None:
            made.bias.copy_(torch.from_numpy(op.bias))
    return made


class TorchHarness(Harness):
    dtypes = ("float64", "float32", "float16", "bfloat16")
    compiler = "inductor"

    def adapter(self) -> Adapter:
        return TorchAdapter()

    def model(self, ops: Sequence[Op], dtype: str = "float32") -> nn.Module:
        return nn.Sequential(*map(layer, ops)).to(getattr(torch, dtype)).eval()

    def call(self, model: nn.Module, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(self.inputs(x)).double().numpy()

    def inputs(self, x: np.ndarray, dtype: str = "float32") -> torch.Tensor:
        return torch.from_numpy(x).to(getattr(torch, dtype) if x.dtype.kind == "f" else None)

    def state(self, model: nn.Module) -> dict[str, np.ndarray]:
        import ml_dtypes  # noqa: F401

        return {
            name: value.detach().double().numpy().astype(str(value.dtype).removeprefix("torch."))
            for name, value in model.named_parameters()
        }

    def shared(self, op: Op) -> nn.Module:
        once = layer(op)
        return nn.Sequential(once, once)

    def tied(self, op: Op) -> nn.Module:
        first, second = layer(op), layer(op)
        second.weight = first.weight
        return nn.Sequential(first, second)

    def gradients(self, model: nn.Module, x: np.ndarray) -> list[np.ndarray]:
        other = copy.deepcopy(model)
        (other(self.inputs(x)) ** 2).sum().backward()
        return [p.grad.numpy() for p in other.parameters() if p.grad is not None]

    def compiled(self, model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
        fast = torch.compile(model, backend=self.compiler)

        def call(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return fast(self.inputs(x)).numpy()

        return call

    def set_training(self, model: nn.Module, training: bool) -> None:
        model.train(training)

    def training(self, model: nn.Module) -> list[bool]:
        return [module.training for module in model.modules()]


# For all checks: what these compress alike is compressed once.
HARNESS = TorchHarness()


@pytest.mark.usefixtures("few_sweeps")
class TestTorch(AdapterSuite):
    @pytest.fixture
    def harness(self) -> Harness:
        return HARNESS
