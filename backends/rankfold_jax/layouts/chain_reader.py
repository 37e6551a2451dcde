"""Reading of the ops of a chain from the layers that it was built as."""

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
    """Return the op of one layer of a chain.

    Args:
        op: the layer replaced.
        form: of the layer of the chain.
        kernel: as the layer holds it, and its stack.
        bias: as the layer holds it, and its stack; None without one.
        shapes_only: whether the numbers are not known.

    Raises:
        Refused: the arrays do not have the shapes of the form.
    """
    try:
        stage = form.op(
            _front(*kernel, form.kernel_shape),
            None if bias is None else _front(*bias, form.bias_shape),
        )
    # A fine-tuned model may hold anything: what does not fit is a reason of this layer alone.
    except RankfoldError as error:
        raise Refused(f"{FOREIGN}{error}") from None
    # Grouped transposed convolutions are built as convolutions of a dilated input, and without a
    # stride nothing is dilated. The form does not tell the two kinds apart; the layer replaced
    # does.
    if isinstance(op, ConvTranspose) and isinstance(stage, Conv):
        stage = _transposed(stage)
    return with_weight(stage, blank(*stage.weight.shape)) if shapes_only else stage


def checked(op: Op, chain: Chain) -> Chain:
    """Return a chain that can stand in the place of a layer.

    Raises:
        Refused: its channels are not those of the layer, or do not follow on each other.
    """
    out, into = channels(op)
    sizes = [channels(stage) for stage in chain]
    # What each stage takes is what the one before gives, with the layer's own channels at both
    # ends.
    followed = [into, *(outputs for outputs, _ in sizes)]
    if not chain or [*(taken for _, taken in sizes), out] != followed:
        raise Refused(f"{FOREIGN}its channels do not fit")
    # Each group of a stack or of the layer has stages of its own: their groups are a multiple.
    if any(stage.groups % op.groups for stage in chain):
        raise Refused(f"{FOREIGN}its groups do not fit")
    if any(stage.bias is not None for stage in chain[:-1]):
        raise Refused(f"{FOREIGN}a bias stands before its last layer")
    return chain


def fixed(what: str, stages: Iterable[str]) -> RankfoldError:
    """Return the error for a change of a compressed layer that would have no effect.

    Args:
        what: is changed, and of which layer.
        stages: the classes of the layers of its chain.
    """
    return RankfoldError(
        f"{what} cannot be changed, it would have no effect: its stages {', '.join(stages)} "
        "compute with their own; change the original layer, then compress"
    )


def _front(array: Array, stack: StackedAxes, layer_shape: tuple[int, ...]) -> Array:
    # A mismatch of axes or sizes falls through to the refusal.
    if array.ndim == len(stack.axes) + len(layer_shape):
        sizes = tuple(array.shape[axis] for axis in stack.axes)
        front = stack.to_front(array) if sizes == stack.sizes else array
        if front.shape == (stack.count, *layer_shape):
            return front
    raise Refused(
        f"{FOREIGN}an array of shape {array.shape} is not a stack {stack.sizes} of {layer_shape}"
    )


def _transposed(stage: Conv) -> Conv | ConvTranspose:
    """Return the transposed convolution that a stage at stride 1 holds as a flipped `Conv`."""
    geo = geometry(stage)
    # Pointwise stages are plain convolutions in either kind of chain.
    if math.prod(geo.kernel) == 1:
        return stage
    if stage.padding_mode != "zeros" or set(geo.stride) != {1}:
        raise Refused(f"{FOREIGN}a strided convolution in place of a transposed one")
    flipped = np.flip(stage.weight, tuple(range(2, stage.weight.ndim)))
    padding = geo.pads((1,) * geo.axes)
    return adjoint(
        np.ascontiguousarray(flipped), stage.bias, geo.stride, padding, geo.dilation, stage.groups
    )
