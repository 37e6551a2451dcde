"""Reading and filling of models on the meta device, which have shapes and no values."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold_torch.torch_internals import unsaved_buffers


def shaped(module: nn.Module) -> nn.Module:
    """Return a module as it is, or one with zeros in place of parameters on the meta device.

    Only its class, shapes and dtypes count; the zeros take no memory.
    """
    if not any(p is not None and p.is_meta for p in module._parameters.values()):
        return module
    # A shallow copy: assigning `_parameters` on it leaves the registries of the module alone.
    shell = copy.copy(module)
    shell._parameters = {name: _zeros(p) for name, p in module._parameters.items()}
    return shell


def materialise(model: nn.Module) -> None:
    """Give every parameter and stored buffer on the meta device memory on the CPU, not yet filled.

    Tied ones stay tied. Dtypes and whether gradients are taken stay as they are.

    Raises:
        RankfoldError: the model has tensors on the meta device that are not part of its state, and
            so are stored nowhere; it is then unchanged.
    """
    lost = [name for name, _ in _unstored(model)]
    if lost:
        raise RankfoldError(
            f"{some(lost)} of the model: on the meta device, so without values, and no part of its "
            "state_dict, so not stored; make the model with values for these (accelerate's "
            "init_empty_weights() leaves buffers on the CPU), or make it on the CPU"
        )
    # By identity, so that a tied tensor gets one memory and stays tied. The attributes that users
    # or libraries put on a parameter are carried over.
    filled: dict[int, torch.Tensor] = {}
    for module in list(model.modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in filled:
                    empty = torch.empty_like(parameter, device="cpu")
                    filled[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
                    vars(filled[id(parameter)]).update(vars(parameter))
                # By `setattr`: modules that keep references of their own (RNNs, their flat weights)
                # renew them in `__setattr__`.
                setattr(module, name, filled[id(parameter)])
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                if id(buffer) not in filled:
                    filled[id(buffer)] = torch.empty_like(buffer, device="cpu")
                setattr(module, name, filled[id(buffer)])


def _unstored(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of tensors on the meta device that a model's state does not hold."""
    for path, module in model.named_modules():
        tensors = {name: module._buffers[name] for name in sorted(unsaved_buffers(module))}
        tensors |= {n: v for n, v in vars(module).items() if isinstance(v, torch.Tensor)}
        for name, tensor in tensors.items():
            if tensor is not None and tensor.is_meta:
                yield f"{path}.{name}".lstrip("."), tensor


def _zeros(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or not parameter.is_meta:
        return parameter
    # One element, expanded: strides of 0 give the shape without the memory.
    zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    return nn.Parameter(zeros, parameter.requires_grad)
