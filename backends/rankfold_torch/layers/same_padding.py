"""Convolutions with ceil(size / stride) outputs, the "SAME" padding of TensorFlow and XLA.

PyTorch's own `padding="same"` exists at stride 1 alone: beyond it the padding depends on the size
of the input. One class is one stage of a chain, so that stages have the same names in a model as in
a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def same_padded(
    x: torch.Tensor, kernel: list[int], stride: list[int], dilation: list[int], mode: str
) -> torch.Tensor:
    """Return the input padded as a convolution needs for ceil(size / stride) outputs.

    An odd element goes to the high end.

    Args:
        x: (..., *spatial).
        kernel: of the convolution, per spatial axis.
        stride: per spatial axis.
        dilation: per spatial axis.
        mode: what to pad with, as `nn.Conv2d` has it.
    """
    axes = len(kernel)
    amounts: list[int] = []
    for back in range(axes):  # functional.pad begins with the last axis
        axis = axes - 1 - back
        size = x.shape[x.dim() - 1 - back]
        outputs = (size + stride[axis] - 1) // stride[axis]
        # Outputs begin every `stride`, and the last one needs `reach` elements from where it
        # begins. Negative where the stride skips the end of the input.
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        total = max((outputs - 1) * stride[axis] + reach - size, 0)
        amounts += [total // 2, total - total // 2]
    # Amounts of zero are passed on, too: a condition on them would depend on the size, which
    # tracers do not follow.
    return functional.pad(x, amounts, mode="constant" if mode == "zeros" else mode)


torch.fx.wrap("same_padded")  # its sizes are numbers only when the model runs


# One function for the three classes: a base class would stand between them and PyTorch's own.
def _forward(self: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name for it
    """Return (batch, out, *sizes), those of the input over the stride, rounded up."""
    padded = same_padded(
        input,
        list(self.kernel_size),
        list(self.stride),
        list(self.dilation),
        self.padding_mode,
    )
    output: torch.Tensor = self._conv_forward(padded, self.weight, self.bias)
    return output


class SameConv1d(nn.Conv1d):
    """`nn.Conv1d` with "SAME" padding at any stride."""

    forward = _forward


class SameConv2d(nn.Conv2d):
    """`nn.Conv2d` with "SAME" padding at any stride."""

    forward = _forward


class SameConv3d(nn.Conv3d):
    """`nn.Conv3d` with "SAME" padding at any stride."""

    forward = _forward


SAME: dict[int, type[nn.Module]] = {1: SameConv1d, 2: SameConv2d, 3: SameConv3d}
"""Classes by the number of spatial axes."""
