"""Layout of interpolative stages, and what they compute: shared by NNX and Linen.

Of y = P [1; T] z the inputs z are outputs themselves, and T z is computed for the others; a wide
layer is the transpose of such a one (`rankfold.ops.interpolation`). The kernel is T alone. The
pivots belong to the form and not to the arrays: trees of parameters hold floats only, as optimizers
and `jax.grad` want them. Channels come last, so that a pointwise convolution is a product, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Linear, Pivots
from rankfold.ops.interpolation import gather_order, is_tall, stored_weight, with_stored_weight
from rankfold_jax.jaxpr.parameter_uses import ParameterUse
from rankfold_jax.layouts.base import Call, Roles, Stage, contiguous, foreign


@dataclass(frozen=True)
class InterpolativeForm:
    """Layout of a kernel T, (*ones, in, out − in) of a tall layer, (*ones, in − out, out) else.

    Attributes:
        pivots: of the layer.
        order: in which its channels are gathered, see `rankfold.ops.interpolation.gather_order`.
        tall: whether there are at least as many outputs as inputs.
        outputs: sizes of the last axes of the output, which its channels are split into.
        axes: number of axes of size 1 before the channels of T; those of space.
    """

    pivots: Pivots
    order: tuple[int, ...]
    tall: bool
    outputs: tuple[int, ...]
    axes: int = 0

    def __hash__(self) -> int:
        """Return a hash that is computed once: it is part of the keys of JAX's caches."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.pivots, self.tall, self.outputs, self.axes))

    @property
    def rank(self) -> int:
        """Number of channels that are passed on."""
        return len(self.pivots)

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return self.rank if self.tall else len(self.order)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of T."""
        rest = len(self.order) - self.rank
        return (*(1,) * self.axes, *((self.rank, rest) if self.tall else (rest, self.rank)))

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias, that of the output channels."""
        return self.outputs

    @property
    def roles(self) -> Roles:
        """Roles of the axes of T, none of which is an axis of the layer replaced."""
        # A tall stage comes last, where "in" is a rank, and a wide one first, where "out" is. The
        # other axis has fewer channels than the layer, so that its sharding need not fit.
        role = "in" if self.tall else "out"
        return (*(f"k{i}" for i in range(self.axes)), f"{role}0", f"{role}1")

    @property
    def bias_roles(self) -> Roles:
        """Roles of the axes of the bias: outputs."""
        return tuple(f"out{i}" for i in range(len(self.outputs)))

    def op(self, kernel: Array, bias: Array | None) -> Linear | Conv:
        """Return the op of one layer.

        Raises:
            Refused: there is a stack of layers.
        """
        if len(kernel) > 1:
            raise Refused(f"a stack of {len(kernel)} interpolative layers")
        stored = np.moveaxis(kernel[0], (-1, -2), (0, 1))
        weight = with_stored_weight(stored, self.pivots, tall=self.tall)
        flat = None if bias is None else contiguous(bias[0]).reshape(-1)
        if self.axes:
            return Conv(weight, flat, pivots=self.pivots)
        return Linear(weight, flat, pivots=self.pivots)

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Refuse: it is a stage already."""
        raise Refused("interpolative already")

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return the sizes of the input without its channels."""
        if use.primitive != "dot_general":
            raise foreign(use)
        return use.extent

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Run all rows, or all of a batch with its channels last."""
        if not self.axes:
            y: Array = call(x[None])[0]
            return y.reshape(len(x), -1)
        return np.moveaxis(call(np.moveaxis(x, 1, -1)[None])[0], -1, 1)

    def apply(self, x: Any, kernel: Any, bias: Any, product: Callable[[Any, Any], Any]) -> Any:
        """Return the output of the layer for an input with channels last.

        Args:
            x: (..., in).
            kernel: T.
            bias: of shape `outputs`, or None.
            product: multiplies an input by a matrix (in, out).
        """
        matrix = kernel.reshape(self.kernel_shape[-2:])
        order = np.asarray(self.order, np.int32)
        if 0 in self.kernel_shape:  # the identity: pivots are ascending
            y = x
        elif self.tall:
            y = jnp.take(jnp.concatenate([x, product(x, matrix)], axis=-1), order, axis=-1)
        else:
            ordered = jnp.take(x, order, axis=-1)
            y = ordered[..., : self.rank] + product(ordered[..., self.rank :], matrix)
        y = y.reshape(*y.shape[:-1], *self.outputs)
        return y if bias is None else y + bias


def form_of(op: Linear | Conv, outputs: tuple[int, ...] | None = None) -> InterpolativeForm:
    """Return the layout of an interpolative op.

    Args:
        op: with pivots.
        outputs: the sizes that its output channels are split into; None for one axis.
    """
    assert op.pivots is not None
    outputs = op.weight.shape[:1] if outputs is None else outputs
    assert math.prod(outputs) == len(op.weight)
    axes = op.weight.ndim - 2
    return InterpolativeForm(op.pivots, tuple(gather_order(op)), is_tall(op), outputs, axes)


def interpolative_stage(op: Linear | Conv, outputs: tuple[int, ...] | None = None) -> Stage:
    """Return the stage of an interpolative op; arguments as for `form_of`."""
    form = form_of(op, outputs)
    kernel = contiguous(np.moveaxis(stored_weight(op), (0, 1), (-1, -2)))[None]
    bias = None if op.bias is None else contiguous(op.bias).reshape(1, *form.outputs)
    return Stage(form, kernel, bias)


def multiplied(x: Any, matrix: Any, precision: Any = None, dtype: Any = None) -> Any:
    """Return x times a matrix (in, out), by a product that options of the layer are given to."""
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(x, matrix, dimensions, precision, preferred_element_type=dtype)
