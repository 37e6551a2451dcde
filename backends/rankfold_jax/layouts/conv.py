"""Layouts of convolutions with every padding of Flax, and of transposed ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Convolution, ConvTranspose, geometry
from rankfold.ops.geometry import Pairs
from rankfold_jax.jaxpr.parameter_uses import ParameterUse
from rankfold_jax.layouts.base import Call, Roles, Stage, contiguous, foreign
from rankfold_jax.layouts.interpolative import interpolative_stage
from rankfold_jax.layouts.padding import LaxPadding, padding_of, pads, reach_of


@dataclass(frozen=True)
class ConvForm:
    """Layout of a convolution with a kernel (*kernel, inputs/groups, outputs).

    Attributes:
        kernel: its sizes.
        inputs: channels.
        outputs: channels.
        strides: one per axis.
        padding: a string of Flax or (low, high) pairs.
        dilation: of the kernel, one per axis.
        groups: feature groups.
        input_dilation: one per axis; not 1 where the layer is a transposed convolution.
    """

    kernel: tuple[int, ...]
    inputs: int
    outputs: int
    strides: tuple[int, ...]
    padding: LaxPadding
    dilation: tuple[int, ...]
    groups: int = 1
    input_dilation: tuple[int, ...] = ()

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel, (*kernel, inputs/groups, outputs)."""
        return (*self.kernel, self.inputs // self.groups, self.outputs)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias, (outputs,)."""
        return (self.outputs,)

    @property
    def roles(self) -> Roles:
        """Roles of the axes of the kernel: space, input, output."""
        return (*(f"k{i}" for i in range(len(self.kernel))), "in0", "out0")

    @property
    def bias_roles(self) -> Roles:
        """Role of the axis of the bias: output."""
        return ("out0",)

    @property
    def depthwise(self) -> bool:
        """True if every channel is convolved on its own."""
        return 1 < self.groups == self.inputs == self.outputs

    @property
    def transposed(self) -> bool:
        """True if the input is dilated."""
        return any(step > 1 for step in self.input_dilation)

    def op(self, kernel: Array, bias: Array | None) -> Convolution:
        """Return a Conv, or a ConvTranspose where the input is dilated."""
        if not 1 <= len(self.kernel) <= 3:
            raise Refused(f"{len(self.kernel)} spatial axes; 1 to 3 are decomposed")
        # (n, *kernel, in, out) to (n, out, in, *kernel), then the stack into the output channels:
        # layers of a stack are groups of one op.
        weight = np.moveaxis(kernel, (-1, -2), (1, 2))
        weight = linalg.contiguous(weight).reshape(-1, *weight.shape[2:])
        flat = None if bias is None else linalg.contiguous(bias).reshape(-1)
        # `len(kernel)` is the length of the stack.
        groups = self.groups * len(kernel)
        if self.transposed:
            return self._transposed_op(weight, flat, groups)
        padding, mode = pads(self.padding, reach_of(self.kernel, self.dilation))
        try:
            return Conv(weight, flat, self.strides, padding, self.dilation, groups, mode)
        except RankfoldError as error:
            raise Refused(str(error)) from None

    def _transposed_op(self, weight: Array, bias: Array | None, groups: int) -> ConvTranspose:
        # ConvTranspose has one stride, which is the dilation of its input.
        if any(step > 1 for step in self.strides):
            raise Refused("both its input is dilated and its output strided")
        padding = ((0, 0),) * len(self.kernel) if self.padding == "VALID" else self.padding
        if isinstance(padding, str):
            raise Refused(f"padding {padding!r} with a dilated input")
        return adjoint(
            # JAX correlates the dilated input with the kernel as it is; the adjoint of a
            # convolution meets it in reverse.
            weight[(slice(None), slice(None), *(slice(None, None, -1),) * len(self.kernel))],
            bias,
            self.input_dilation,
            padding,
            self.dilation,
            groups,
        )

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Build convolutions, depthwise and pointwise ones included."""
        return stages_of(chain, stack)

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return (batch, *spatial), before the padding that Flax does itself."""
        if use.primitive != "conv_general_dilated":
            raise foreign(use)
        # These Flax pads itself before the convolution, which then sees the padded input.
        if self.padding not in ("CIRCULAR", "REFLECT", "CAUSAL"):
            return use.extent
        padded, _ = pads(self.padding, reach_of(self.kernel, self.dilation))
        assert not isinstance(padded, str)
        sizes = zip(use.extent[1:], padded, strict=True)
        return (use.extent[0], *(size - low - high for size, (low, high) in sizes))

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Run all of a batch at once, channels last."""
        return _run(call, x, stack)


@dataclass(frozen=True)
class TransposedForm:
    """Layout of a transposed convolution with a kernel (*kernel, inputs, outputs).

    It is (*kernel, outputs, inputs) where the kernel is flipped.

    Attributes:
        kernel: its sizes.
        inputs: channels.
        outputs: channels.
        strides: one per axis.
        padding: "SAME", "VALID", "CIRCULAR" or the (low, high) pairs of `lax.conv_transpose`.
        dilation: of the kernel, one per axis.
        flipped: `transpose_kernel` of the layer.
    """

    kernel: tuple[int, ...]
    inputs: int
    outputs: int
    strides: tuple[int, ...]
    padding: LaxPadding
    dilation: tuple[int, ...]
    flipped: bool = False

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel, as the layer holds it."""
        channels = (self.inputs, self.outputs)
        return (*self.kernel, *(channels[::-1] if self.flipped else channels))

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias, (outputs,)."""
        return (self.outputs,)

    @property
    def roles(self) -> Roles:
        """Roles of the axes of the kernel: space and channels."""
        channels = ("out0", "in0") if self.flipped else ("in0", "out0")
        return (*(f"k{i}" for i in range(len(self.kernel))), *channels)

    @property
    def bias_roles(self) -> Roles:
        """Role of the axis of the bias: output."""
        return ("out0",)

    def op(self, kernel: Array, bias: Array | None) -> ConvTranspose:
        """Return a ConvTranspose, its padding cut off the full output."""
        if not 1 <= len(self.kernel) <= 3:
            raise Refused(f"{len(self.kernel)} spatial axes; 1 to 3 are decomposed")
        if self.padding == "CIRCULAR":
            raise Refused("a circular transposed convolution is not decomposed")
        if isinstance(self.padding, str) and self.padding not in ("SAME", "VALID"):
            raise Refused(f"padding {self.padding!r} is not one of lax.conv_transpose")
        last = (-2, -1) if self.flipped else (-1, -2)
        weight = np.moveaxis(kernel, last, (1, 2))
        # `transpose_kernel` does this flip within JAX.
        if not self.flipped:
            weight = np.flip(weight, tuple(range(3, weight.ndim)))
        weight = linalg.contiguous(weight).reshape(-1, *weight.shape[2:])
        flat = None if bias is None else linalg.contiguous(bias).reshape(-1)
        return adjoint(weight, flat, self.strides, self._explicit, self.dilation, len(kernel))

    @property
    def _explicit(self) -> Pairs:
        if not isinstance(self.padding, str):
            return self.padding
        # As `lax.conv_transpose` computes them for its strings.
        pairs = []
        for reach, stride in zip(reach_of(self.kernel, self.dilation), self.strides, strict=True):
            if self.padding == "SAME":
                total = reach + stride - 2
                low = reach - 1 if stride > reach - 1 else math.ceil(total / 2)
            else:
                total = reach + stride - 2 + max(reach - stride, 0)
                low = reach - 1
            pairs.append((low, total - low))
        return tuple(pairs)

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Build pointwise convolutions around a transposed one."""
        return stages_of(chain, stack)

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return (batch, *spatial) of the input."""
        if use.primitive != "conv_general_dilated":
            raise foreign(use)
        return use.extent

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Run all of a batch at once, channels last."""
        return _run(call, x, stack)


def adjoint(
    weight: Array,
    bias: Array | None,
    strides: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    groups: int,
) -> ConvTranspose:
    """Return the transposed convolution that convolves its dilated input with that padding."""
    reach = reach_of(weight.shape[2:], dilation)
    # Full correlation pads by reach - 1. What the layer pads less is what a ConvTranspose cuts off
    # its output; what it pads more at the high end is output_padding.
    cut = [(r - 1 - low, r - 1 - high) for r, (low, high) in zip(reach, padding, strict=True)]
    if any(low < 0 for low, _ in cut):
        raise Refused(f"padding {padding} reaches beyond the kernel")
    try:
        return ConvTranspose(
            weight,
            bias,
            stride=strides,
            padding=tuple((low, max(high, 0)) for low, high in cut),
            dilation=dilation,
            groups=groups,
            output_padding=tuple(max(-high, 0) for _, high in cut),
        )
    except RankfoldError as error:
        raise Refused(str(error)) from None


def stages_of(chain: Chain, stack: int) -> tuple[Stage, ...]:
    """Build convolutions for a chain.

    Args:
        chain: of convolutions.
        stack: how many layers the groups of its ops belong to.

    Raises:
        Refused: an op is none, or Flax has no layer for it.
    """
    stages = []
    for op in chain:
        if not isinstance(op, (Conv, ConvTranspose)):
            raise Refused(f"Flax has no {type(op).__name__} in place of a convolution")
        if op.groups % stack:
            raise Refused(f"the chain has {op.groups} groups for {stack} layers")
        if isinstance(op, Conv) and op.pivots is not None:
            stages.append(interpolative_stage(op))
            continue
        form = _form(op, stack)
        weight = op.weight.reshape(stack, -1, *op.weight.shape[1:])
        if isinstance(op, ConvTranspose):
            weight = np.flip(weight, tuple(range(3, weight.ndim)))
        kernel = contiguous(np.moveaxis(weight, (1, 2), (-1, -2)))
        bias = None if op.bias is None else contiguous(op.bias).reshape(stack, -1)
        stages.append(Stage(form, kernel, bias))
    return tuple(stages)


def _form(op: Convolution, stack: int) -> ConvForm | TransposedForm:
    geo = geometry(op)
    groups = op.groups // stack
    outputs, inputs = len(op.weight) // stack, op.weight.shape[1] * groups
    if isinstance(op, Conv):
        padding = padding_of(op)
        return ConvForm(geo.kernel, inputs, outputs, geo.stride, padding, geo.dilation, groups)
    around = tuple(
        (r - 1 - low, r - 1 - high + extra)
        for r, (low, high), extra in zip(
            geo.reach, geo.pads((1,) * geo.axes), geo.output_padding, strict=True
        )
    )
    # The layer that users know. `nn.ConvTranspose` has no groups, so that others are convolutions
    # of a dilated input.
    if groups == 1:
        return TransposedForm(geo.kernel, inputs, outputs, geo.stride, around, geo.dilation)
    ones = (1,) * geo.axes
    return ConvForm(
        geo.kernel, inputs, outputs, ones, around, geo.dilation, groups, input_dilation=geo.stride
    )


def _run(call: Call, x: Array, stack: int) -> Array:
    batch, channels, *spatial = x.shape
    # (batch, stack · channels, *space) to (stack, batch, *space, channels).
    split = np.moveaxis(x.reshape(batch, stack, channels // stack, *spatial), (1, 2), (0, -1))
    y = np.moveaxis(call(np.ascontiguousarray(split)), (0, -1), (1, 2))
    return y.reshape(batch, -1, *y.shape[3:])
