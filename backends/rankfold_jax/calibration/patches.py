"""Rows that a kernel meets at a product, read from the operands of its equation.

A row belongs to one output position of one image; the first axis of an activation counts images.
Whatever the layer is, a row here is laid out as the equation has it: for a matrix product the batch
axes and then the summed ones, for a convolution (channels, *kernel). Views are hashable, so that
what is compiled for one layer serves every other of its shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from rankfold.calibration.position_sample import flat_index
from rankfold_jax.jaxpr.provenance import param, shape_of

Axes: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class MatrixView:
    """View of a dot_general from the operand that is no kernel.

    Attributes:
        shared: its batch axes, in the order of the equation.
        summed: its contracted axes, in the order of the equation.
        shape: its shape.
        first: whether it is the left operand.
    """

    shared: Axes
    summed: Axes
    shape: tuple[int, ...]
    first: bool

    @property
    def _free(self) -> Axes:
        taken = {*self.shared, *self.summed}
        return tuple(axis for axis in range(len(self.shape)) if axis not in taken)

    @property
    def images(self) -> int:
        """Length of the first free axis of the operand."""
        return self.shape[self._free[0]] if self._free else 1

    @property
    def positions(self) -> int:
        """Number of rows of one image."""
        return math.prod(self.shape[axis] for axis in self._free[1:])

    def rows(self, x: jax.Array, chosen: Any) -> jax.Array:
        """Return rows (images, rows of one, batch · summed), at chosen positions or all."""
        # Free axes become rows; batch axes come before the summed ones, as the layout counts them.
        moved = jnp.transpose(x, (*self._free, *self.shared, *self.summed))
        return _taken(moved.reshape(self.images, self.positions, -1), chosen)

    def outputs(self, y: jax.Array, chosen: Any) -> jax.Array:
        """Return (images, rows of one, batch · other axes of the kernel) of the result."""
        shared, free = len(self.shared), len(self._free)
        behind = y.ndim - shared - free
        # dot_general gives batch axes, then free axes of the left operand, then of the right one.
        # The operand seen from here is on one of these sides.
        start = shared if self.first else shared + behind
        free_axes = tuple(range(start, start + free))
        others = tuple(axis for axis in range(shared, y.ndim) if axis not in free_axes)
        moved = jnp.transpose(y, (*free_axes, *range(shared), *others))
        return _taken(moved.reshape(self.images, self.positions, -1), chosen)


@dataclass(frozen=True)
class WindowView:
    """View of a conv_general_dilated from its input.

    Attributes:
        input: (batch, channel, *spatial) axes of the input.
        output: the same of the output.
        shape: of the input.
        kernel: its sizes.
        strides: one per spatial axis.
        padding: (low, high) pairs.
        dilation: (of the input, of the kernel) pairs.
        sizes: of the output.
    """

    input: Axes
    output: Axes
    shape: tuple[int, ...]
    kernel: Axes
    strides: Axes
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[tuple[int, int], ...]
    sizes: Axes

    @property
    def images(self) -> int:
        """Number of images of a batch."""
        return self.shape[self.input[0]]

    @property
    def positions(self) -> int:
        """Number of positions of the output."""
        return math.prod(self.sizes)

    def rows(self, x: jax.Array, chosen: Any) -> jax.Array:
        """Return (images, rows of one, channels · kernel) of the input."""
        first, channel, *spatial = self.input
        x = jnp.transpose(x, (first, *spatial, channel))
        # The third number of `lax.pad` is interior padding: the dilation of the input. Padding may
        # be negative, which crops.
        around = [(low, high, wide - 1) for (low, high), (wide, _) in self._around]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
        sizes = x.shape[1:-1]
        # Where each output position begins in the padded input, and how far each tap lies from
        # there.
        origins = flat_index(np.indices(self.sizes), self.strides, sizes)
        taps = flat_index(np.indices(self.kernel), [far for _, far in self.dilation], sizes)
        flat = x.reshape(len(x), -1, x.shape[-1])
        if chosen is None:
            rows = flat[:, origins[:, None] + taps]
        else:
            places = jnp.asarray(origins)[chosen][..., None] + taps
            # Every image has positions of its own.
            rows = jax.vmap(lambda image, index: image[index])(flat, places)
        return rows.swapaxes(2, 3).reshape(*rows.shape[:2], -1)

    @property
    def _around(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return list(zip(self.padding, self.dilation, strict=True))

    def outputs(self, y: jax.Array, chosen: Any) -> jax.Array:
        """Return (images, rows of one, channels) of the output."""
        first, channel, *spatial = self.output
        y = jnp.transpose(y, (first, *spatial, channel))
        return _taken(y.reshape(len(y), -1, y.shape[-1]), chosen)


@dataclass(frozen=True)
class LookUpView:
    """View of a gather of rows of a table.

    Attributes:
        shape: of the indices, without their last axis.
        axis: of the output on which the features lie.
    """

    shape: tuple[int, ...]
    axis: int

    @property
    def images(self) -> int:
        """Length of the first axis of the indices."""
        return self.shape[0] if self.shape else 1

    @property
    def positions(self) -> int:
        """Number of look-ups of one image."""
        return math.prod(self.shape[1:])

    def rows(self, x: jax.Array, chosen: Any) -> jax.Array:
        """Return the indices, (look-ups,)."""
        del chosen  # they are only counted, all of them
        return x.reshape(-1)

    def outputs(self, y: jax.Array, chosen: Any) -> jax.Array:
        """Return (images, look-ups of one, features)."""
        moved = jnp.moveaxis(y, self.axis, -1)
        return _taken(moved.reshape(self.images, self.positions, -1), chosen)


PatchView: TypeAlias = MatrixView | WindowView | LookUpView


def matrix_view(eqn: JaxprEqn, side: int) -> MatrixView:
    """Return the view of a dot_general whose operand at `side` is the kernel."""
    contract, batch = param(eqn, "dimension_numbers")
    shape = shape_of(eqn.invars[1 - side])
    return MatrixView(tuple(batch[1 - side]), tuple(contract[1 - side]), shape, side == 1)


def window_view(eqn: JaxprEqn) -> WindowView:
    """Return the view of a convolution."""
    spec = param(eqn, "dimension_numbers")
    weight, output = shape_of(eqn.invars[1]), shape_of(eqn.outvars[0])
    wide, far = param(eqn, "lhs_dilation"), param(eqn, "rhs_dilation")
    return WindowView(
        tuple(spec.lhs_spec),
        tuple(spec.out_spec),
        shape_of(eqn.invars[0]),
        tuple(weight[axis] for axis in spec.rhs_spec[2:]),
        tuple(param(eqn, "window_strides")),
        tuple((int(low), int(high)) for low, high in param(eqn, "padding")),
        tuple(zip(wide, far, strict=True)),
        tuple(output[axis] for axis in spec.out_spec[2:]),
    )


def look_up_view(eqn: JaxprEqn) -> LookUpView | None:
    """Return the view of a gather of whole rows of a matrix; None of any other."""
    numbers = param(eqn, "dimension_numbers")
    table = shape_of(eqn.invars[0])
    rows = (
        # Other gathers (slices of rows, several index columns) are no look-ups of an embedding.
        len(table) == 2
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and tuple(param(eqn, "slice_sizes")) == (1, table[1])
    )
    if not rows:
        return None
    return LookUpView(shape_of(eqn.invars[1])[:-1], numbers.offset_dims[0])


def _taken(rows: jax.Array, chosen: Any) -> jax.Array:
    if chosen is None:
        return rows
    # (images, positions, width) at (images, chosen).
    return jnp.take_along_axis(rows, jnp.asarray(chosen)[:, :, None], axis=1)
