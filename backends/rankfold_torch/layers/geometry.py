"""Geometry of a stock convolution as PyTorch reads it, in whatever form it was set."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn

from rankfold.errors import Refused
from rankfold_torch.torch_internals import padding_at_construction


def convolution(module: nn.Module, axes: int) -> dict[str, Any]:
    """Return the arguments of a `rankfold.ops.Conv` besides weight and bias.

    Raises:
        Refused: PyTorch could not run the layer.
    """
    stride = _per_axis(module, "stride", axes, least=1)
    padding: Any = module.padding
    if not isinstance(padding, str):
        padding = _per_axis(module, "padding", axes, least=0)
    elif padding not in ("same", "valid") or (padding == "same" and any(s > 1 for s in stride)):
        raise _cannot_run(module, "padding")
    dilation = _per_axis(module, "dilation", axes, least=1)
    if module.padding_mode != "zeros":
        padding = _padding_of_mode(module, padding, axes)
    return {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": _integer(module, "groups", module.groups, least=1),
        "padding_mode": module.padding_mode,
    }


def transposed(module: nn.Module, axes: int) -> dict[str, Any]:
    """Return the arguments of a `rankfold.ops.ConvTranspose` besides weight and bias.

    Raises:
        Refused: PyTorch could not run the layer.
    """
    # Attributes may be set to anything after construction, where nothing checks them.
    if not isinstance(module.padding, tuple):  # what its forward asserts
        raise _cannot_run(module, "padding")
    if module.padding_mode != "zeros":
        raise _cannot_run(module, "padding_mode")
    return {
        "stride": _per_axis(module, "stride", axes, least=1),
        "padding": _per_axis(module, "padding", axes, least=0),
        "dilation": _per_axis(module, "dilation", axes, least=1),
        "groups": _integer(module, "groups", module.groups, least=1),
        "output_padding": _per_axis(module, "output_padding", axes, least=0),
    }


def _per_axis(module: nn.Module, name: str, axes: int, *, least: int) -> tuple[int, ...]:
    """Return one int per axis; an int or a sequence of one is for every axis."""
    value: Any = getattr(module, name)
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) == 1:
        values *= axes
    if len(values) != axes:
        raise _cannot_run(module, name)
    return tuple(_integer(module, name, item, least=least) for item in values)


def _integer(module: nn.Module, name: str, value: Any, *, least: int) -> int:
    """Return an int for any integer, those of NumPy included."""
    # `operator.index` takes True for 1.
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise _cannot_run(module, name)
    number = operator.index(value)
    if number < least:
        raise _cannot_run(module, name)
    return number


def _padding_of_mode(module: nn.Module, padding: Any, axes: int) -> Any:
    """Return the padding of a mode other than zeros: the amounts noted at construction."""
    # `padding` may have been set to something else since.
    amounts = padding_at_construction(module)
    pairs = tuple((amounts[i], amounts[i + 1]) for i in range(2 * axes - 2, -1, -2))
    if isinstance(padding, str):
        kernel: Any = module.weight.shape[2:]  # type: ignore[index]  # a tensor
        reach = [0] * axes
        if padding == "same":
            dilation = _per_axis(module, "dilation", axes, least=1)
            reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        # Where `padding` still says what is done, its short form is kept: "same" holds at any size.
        return padding if pairs == tuple((r // 2, r - r // 2) for r in reach) else pairs
    return padding if pairs == tuple((p, p) for p in padding) else pairs


def _cannot_run(module: nn.Module, name: str) -> Refused:
    return Refused(f"its {name} is {getattr(module, name)!r}, with which PyTorch cannot run it")
