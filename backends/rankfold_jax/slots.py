"""Where a layer's numbers lie among the arrays of a model, and how new ones get there."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rankfold.errors import Refused
from rankfold.ops import Array, Op
from rankfold_jax.forms import Form
from rankfold_jax.stacks import Stack

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slot:
    """A layer's kernel and bias among the arrays of a model.

    An array of flat places goes the way that the numbers themselves go, from the layout of the
    layer to that of its op, so that no layout is written down twice.

    Attributes:
        form: of one layer.
        kernel: which of the model's arrays is its kernel.
        shape: of that array.
        stack: which axes of it have more than one layer's.
        bias: which of the arrays is its bias; None without one.
        bias_shape: of that array.
        bias_stack: the axes of it.
    """

    form: Form
    kernel: int
    shape: tuple[int, ...]
    stack: Stack
    bias: int | None = None
    bias_shape: tuple[int, ...] = ()
    bias_stack: Stack = field(default_factory=Stack)

    @cached_property
    def _op(self) -> Op:
        kernel = self.stack.to_front(_counted(self.shape))
        bias = None
        if self.bias is not None:
            bias = self.bias_stack.to_front(_counted(self.bias_shape))
        return self.form.op(kernel, bias)

    @cached_property
    def places(self) -> Places:
        """For each number of the op's weight, its flat place in the kernel."""
        return self._op.weight.astype(np.int64)

    @cached_property
    def numbers(self) -> Places:
        """For each flat place in the kernel, the flat place in the op's weight."""
        found = np.empty(self.places.size, np.int64)
        found[self.places.reshape(-1)] = np.arange(found.size)
        return found

    def filled(self, op: Op) -> tuple[Array, Array | None]:
        """The kernel and the bias, in the layer's layout, that hold an op's numbers.

        Raises:
            Refused: the op has not the shape of the layer.
        """
        if op.weight.shape != self.places.shape:
            raise Refused(
                f"values of shape {op.weight.shape} do not fit its kernel, which is "
                f"{self.places.shape}"
            )
        if (op.bias is None) != (self.bias is None):
            raise Refused("new values do not fit into its parameters")
        kernel = _scattered(op.weight, self.places, self.shape)
        if op.bias is None:
            return kernel, None
        assert self._op.bias is not None
        return kernel, _scattered(op.bias, self._op.bias.astype(np.int64), self.bias_shape)


def _counted(shape: tuple[int, ...]) -> Array:
    """The flat places of an array, as the floats that an op is made of; exact below 2**53."""
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float64).reshape(shape)


def _scattered(values: Array, places: Places, shape: tuple[int, ...]) -> Array:
    flat = np.empty(places.size, values.dtype)
    flat[places.reshape(-1)] = values.reshape(-1)
    return flat.reshape(shape)
