"""Memory of parameters that are built: dense, in the layer's format, and trainable.

Much of PyTorch takes nothing else: `save_file`, `fully_shard`, `LBFGS` and `parameters_to_vector`
want contiguous parameters, and a tensor made under `torch.inference_mode` can never be trained.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rankfold.linalg import Array

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def parameter(values: Array | torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    """Return a parameter of these values, in memory of its own, otherwise like another one.

    Args:
        values: of any dtype, on any device.
        like: has the dtype, the device, the memory format and the gradient flag.
    """
    with torch.inference_mode(mode=False):
        if isinstance(values, torch.Tensor):
            tensor = values.detach().clone()  # under inference mode a view would stay what it is
        else:
            # A copy: arrays of ops are read-only, and `from_numpy` would share their memory.
            tensor = torch.from_numpy(np.array(values, order="C"))
        tensor = tensor.to(device=like.device, dtype=like.dtype)
        tensor = tensor.contiguous(memory_format=_format(tensor.ndim, like))
        return nn.Parameter(tensor, requires_grad=like.requires_grad)


def settle(built: nn.Module) -> None:
    """Make all parameters of a module such as `parameter` makes them.

    Args:
        built: by a layer rule, or copied from a layer.
    """
    # By identity, so that parameters that are tied within the module stay tied.
    settled: dict[int, nn.Parameter] = {}
    for module in built.modules():
        for name, tensor in module._parameters.items():
            if tensor is None or nn.parameter.is_lazy(tensor):
                continue
            layout = _format(tensor.ndim, tensor)
            if tensor.is_inference() or not tensor.is_contiguous(memory_format=layout):
                settled.setdefault(id(tensor), parameter(tensor, tensor))
                module._parameters[name] = settled[id(tensor)]


def _format(axes: int, like: torch.Tensor) -> torch.memory_format:
    """Return channels last where a tensor of as many axes has it; else contiguous."""
    layout = _CHANNELS_LAST.get(axes)
    # A 1×1 kernel is contiguous in both formats, and then passes for contiguous.
    if layout is None or like.ndim != axes or like.is_contiguous():
        return torch.contiguous_format
    return layout if like.is_contiguous(memory_format=layout) else torch.contiguous_format
