"""Index of a layer's numbers among the arrays of a model, by which new ones are put there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Op, by_group
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.stacks import StackedAxes

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ParameterIndex:
    """Index of a layer's kernel and bias among the arrays of a model.

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

    form: LayerLayout
    kernel: int
    shape: tuple[int, ...]
    stack: StackedAxes
    bias: int | None = None
    bias_shape: tuple[int, ...] = ()
    bias_stack: StackedAxes = field(default_factory=StackedAxes)

    @cached_property
    def _op(self) -> Op:
        # The layer is read with the places 0, 1, 2 ... for numbers. Whatever the form transposes,
        # flips or groups, each number of the op then says where in the kernel it comes from.
        kernel = self.stack.to_front(_counted(self.shape))
        bias = None
        if self.bias is not None:
            bias = self.bias_stack.to_front(_counted(self.bias_shape))
        return self.form.op(kernel, bias)

    @property
    def groups(self) -> int:
        """Number of groups of the op."""
        return self._op.groups

    @cached_property
    def places(self) -> Places:
        """Flat place in the kernel of each number of the op's weight."""
        return self._op.weight.astype(np.int64)

    @cached_property
    def numbers(self) -> Places:
        """Flat place in the op's weight of each flat place in the kernel."""
        numbers = np.empty(self.places.size, np.int64)
        # The inverse of a permutation.
        numbers[self.places.reshape(-1)] = np.arange(numbers.size)
        return numbers

    def filled(self, op: Op) -> tuple[Array, Array | None]:
        """Return the kernel and the bias, in the layer's layout, that hold an op's numbers.

        Raises:
            Refused: the op has not the shape of the layer.
        """
        kernel = np.empty(self.shape, op.weight.dtype)
        bias = None if op.bias is None else np.empty(self.bias_shape, op.bias.dtype)
        self.fill(kernel, bias, op, range(self._op.groups))
        return kernel, bias

    def fill(self, kernel: Array, bias: Array | None, op: Op, groups: Sequence[int]) -> None:
        """Put an op's numbers into a kernel and a bias in the layer's layout, in C order.

        Args:
            kernel: the kernel.
            bias: the bias; None without one.
            op: some groups of the layer.
            groups: which.

        Raises:
            Refused: the op has not the shape of the layer.
        """
        layer, total = self._op, self._op.groups
        # Layers of a stack that a loop calls one after the other are filled one at a time.
        places = by_group(self.places, total)[list(groups)]
        shape = (len(layer.weight) // total * len(groups), *layer.weight.shape[1:])
        if op.weight.shape != shape:
            raise Refused(
                f"values of shape {op.weight.shape} do not fit its kernel, which is {shape}"
            )
        if (op.bias is None) != (self.bias is None):
            raise Refused("new values do not fit into its parameters")
        # In C order `reshape` gives a view, so this writes to the kernel itself.
        kernel.reshape(-1)[places.reshape(-1)] = op.weight.reshape(-1)
        if op.bias is not None and bias is not None and layer.bias is not None:
            behind = by_group(layer.bias, total)[list(groups)].astype(np.int64)
            bias.reshape(-1)[behind.reshape(-1)] = op.bias


def _counted(shape: tuple[int, ...]) -> Array:
    """Return the flat places of an array, as floats for an op; exact below 2**53."""
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float64).reshape(shape)
