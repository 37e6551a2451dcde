"""Copies of a layer with other values, for a refit that leaves the layer its shape."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from rankfold import linalg
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import ConvTranspose, Op
from rankfold_torch.layers.parameter_memory import parameter, settle
from rankfold_torch.layers.stock import swap_channels


def refilled(module: nn.Module, op: Op, read: Callable[[nn.Module], Op] | None) -> nn.Module:
    """Return a copy of a layer that holds the values of an op of its shape.

    Args:
        module: the layer.
        op: the values.
        read: for a layer that is not a stock one, gives the op of such a layer; by it the layout of
            the weight is found out.

    Raises:
        Refused: the values do not fit into the layer.
    """
    copied = copy.deepcopy(module)
    settle(copied)
    for tensor in copied.parameters():
        # `deepcopy` takes gradients along, which are those of other values.
        tensor.grad = None
    weight, bias = (copied._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or (bias is None) != (op.bias is None):
        raise Refused("new values do not fit into its parameters")
    if op.bias is not None:
        _fill(copied, "bias", op.bias)
    if read is None:
        # PyTorch stores transposed convolutions (in, out/groups, *kernel).
        swapped = isinstance(op, ConvTranspose)
        _fill(copied, "weight", swap_channels(op.weight, op.groups) if swapped else op.weight)
        return copied
    # A rule reads in one direction only. So the values are written in each known layout, and the
    # rule is asked to read them back. A square weight may fit in two shapes; the values decide.
    for layout in _layouts(op):
        if layout.shape == tuple(weight.shape):
            _fill(copied, "weight", layout)
            if _agree(read(copied), op, torch.finfo(weight.dtype).eps):
                return copied
    raise Refused("its layer rule reads a layout that new values cannot be written in")


def _layouts(op: Op) -> tuple[Array, ...]:
    axes = range(op.weight.ndim)
    # (in, out), or (*kernel, in, out)
    transposed = linalg.permuted(op.weight, (*axes[2:], 1, 0))
    return op.weight, transposed, swap_channels(op.weight, op.groups)


def _fill(module: nn.Module, name: str, values: Array) -> None:
    old = module._parameters[name]
    assert old is not None
    if tuple(old.shape) != tuple(values.shape):
        raise Refused(
            f"values of shape {tuple(values.shape)} do not fit its parameter {tuple(old.shape)}"
        )
    module._parameters[name] = parameter(values, old)


def _agree(stored: Op, op: Op, epsilon: float) -> bool:
    if type(stored) is not type(op) or stored.weight.shape != op.weight.shape:
        return False
    pairs = [(stored.weight, op.weight)]
    if stored.bias is not None and op.bias is not None:
        pairs.append((stored.bias, op.bias))
    return all(
        bool(
            # The layer stores in its own dtype: equal up to its rounding, with a factor of 2 to
            # spare.
            linalg.largest(abs(linalg.double(linalg.like(a, b)) - b))
            <= 2 * epsilon * linalg.largest(abs(b))
        )
        for a, b in pairs
    )
