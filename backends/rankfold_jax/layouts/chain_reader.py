"""The ops of a chain, read back from the layers it was built as."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Op, blank, channels, geometry, with_weight
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.conv import adjoint
from rankfold_jax.layouts.stacks import StackedAxes

FOREIGN = "what stands in its place is not a chain of stock layers: "


def stage_op(
    op: Op,
    form: LayerLayout,
    kernel: tuple[Array, StackedAxes],
    bias: tuple[Array, StackedAxes] | None,
    *,
    shapes_only: bool = False,
) -> Op:
    """The op of one layer of a chain.

    Args:
        op: the layer replaced.
        form: of the layer of the chain.
        kernel: as the layer holds it, and its stack.
        bias: the same; None without one.
        shapes_only: whether the numbers are not known.

    Raises:
        Refused: the arrays do not have the shapes of the form.
    """
    try:
        stage = form.op(
            _front(*kernel, form.kernel_shape),
            None if bias is None else _front(*bias, form.bias_shape),
        )
    except RankfoldError as error:
        raise Refused(f"{FOREIGN}{error}") from None
    if isinstance(op, ConvTranspose) and isinstance(stage, Conv):
        stage = _transposed(stage)
    return with_weight(stage, blank(*stage.weight.shape)) if shapes_only else stage


def checked(op: Op, chain: Chain) -> Chain:
    """A chain, if it can stand in the place of a layer.

    Raises:
        Refused: its channels are not those of the layer, or do not follow on each other.
    """
    out, into = channels(op)
    sizes = [channels(stage) for stage in chain]
    followed = [into, *(outputs for outputs, _ in sizes)]
    if not chain or [*(taken for _, taken in sizes), out] != followed:
        raise Refused(f"{FOREIGN}its channels do not fit")
    if any(stage.groups % op.groups for stage in chain):
        raise Refused(f"{FOREIGN}its groups do not fit")
    if any(stage.bias is not None for stage in chain[:-1]):
        raise Refused(f"{FOREIGN}a bias stands before its last layer")
    return chain


def fixed(what: str, stages: Iterable[str]) -> RankfoldError:
    """The error for a change of a compressed layer that would have no effect.

    Args:
        what: is changed, and of which layer.
        stages: the classes of the layers of its chain.
    """
    return RankfoldError(
        f"{what} cannot be changed, it would have no effect: its stages {', '.join(stages)} "
        "compute with their own; change the original layer, then compress"
    )


def _front(array: Array, stack: StackedAxes, layer_shape: tuple[int, ...]) -> Array:
    if array.ndim == len(stack.axes) + len(layer_shape):
        sizes = tuple(array.shape[axis] for axis in stack.axes)
        front = stack.to_front(array) if sizes == stack.sizes else array
        if front.shape == (stack.count, *layer_shape):
            return front
    raise Refused(
        f"{FOREIGN}an array of shape {array.shape} is not a stack {stack.sizes} of {layer_shape}"
    )


def _transposed(stage: Conv) -> Conv | ConvTranspose:
    """A grouped stage with a stride of 1 is held as a convolution with the kernel flipped."""
    geo = geometry(stage)
    if math.prod(geo.kernel) == 1:
        return stage
    if stage.padding_mode != "zeros" or set(geo.stride) != {1}:
        raise Refused(f"{FOREIGN}a strided convolution in place of a transposed one")
    flipped = np.flip(stage.weight, tuple(range(2, stage.weight.ndim)))
    padding = geo.pads((1,) * geo.axes)
    return adjoint(
        np.ascontiguousarray(flipped), stage.bias, geo.stride, padding, geo.dilation, stage.groups
    )
