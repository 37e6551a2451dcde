"""Layers at single products of a jaxpr, with the rows of the equation as those of the op.

An op's weight meets rows (groups, d) with d = in/groups · positions of the kernel, channels first,
and gives outputs (groups, out/groups). Which number of an equation's row is which of the op's
follows from the places of the kernel's numbers, so that neither transposed kernels nor flipped,
stacked or grouped ones need a rule of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import JaxprEqn

from rankfold.calibration.accumulators import sampled_positions
from rankfold.linalg import Array
from rankfold.ops import Embedding, Op
from rankfold_jax.calibration.patches import PatchView, look_up_view, matrix_view, window_view
from rankfold_jax.jaxpr.element_index import IndexedValue, label_of
from rankfold_jax.jaxpr.parameter_uses import look_up, product
from rankfold_jax.jaxpr.provenance import param
from rankfold_jax.layouts.parameter_index import ParameterIndex

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Layout of the rows of an equation as those of an op.

    Attributes:
        rows: (groups here, d), places in a row of the equation.
        outs: (groups here, out/groups), places in an output of the equation.
        groups: (*loops, groups here), which groups of the op these are.
    """

    rows: Ints
    outs: Ints
    groups: Ints


@dataclass(frozen=True, eq=False)
class LayerProduct:
    """Layer at one product or look-up of a jaxpr.

    Attributes:
        path: of the layer.
        side: which operand the kernel is.
        view: of the other operand and of the output.
        layout: of their rows.
        counters: the numbers of the iterations of the loops.
    """

    path: str
    side: int
    view: PatchView
    layout: Layout
    counters: tuple[Any, ...]

    def rows(self, x: jax.Array, chosen: Any) -> jax.Array:
        """Return (rows, groups here, d) of the other operand, at some positions or at all."""
        return op_rows(self.view, x, self.layout.rows, chosen)

    def outputs(self, y: jax.Array, chosen: Any) -> jax.Array:
        """Return (rows, groups here, out/groups) of the output."""
        return op_outputs(self.view, y, self.layout.outs, chosen)

    def groups(self) -> Any:
        """Return the groups of the op that are met in this iteration, (groups here,)."""
        # In a scan over stacked layers each turn meets other groups; the counters are traced
        # values.
        return jnp.asarray(self.layout.groups)[self.counters]


def op_rows(view: PatchView, x: jax.Array, rows: Any, chosen: Any) -> jax.Array:
    """Return (rows, groups, d) of an operand, in the precision that sums are made in."""
    values = working(view.rows(x, chosen))
    return values.reshape(-1, values.shape[-1])[:, rows]


def op_outputs(view: PatchView, y: jax.Array, outs: Any, chosen: Any) -> jax.Array:
    """Return (rows, groups, out/groups) of an output, in the precision that sums are made in."""
    values = working(view.outputs(y, chosen))
    return values.reshape(-1, values.shape[-1])[:, outs]


def working(x: jax.Array) -> jax.Array:
    """Return float64 as it is, anything else as float32."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def sampled(view: PatchView, op: Op, examples: int, basis: Array | None = None) -> int | None:
    """Return how many positions of each image are enough; None where all are needed.

    Args:
        view: of the layer.
        op: the layer.
        examples: seen in all; the more, the fewer positions of each are needed.
        basis: what wide patches are projected on; see `sampled_positions`.
    """
    if isinstance(op, Embedding):
        return None
    wanted = sampled_positions(op, examples, basis)
    return None if wanted >= view.positions else wanted


def layer_product(
    eqn: JaxprEqn,
    inside: Sequence[IndexedValue | None],
    path: str,
    parameter: ParameterIndex,
    op: Op,
) -> LayerProduct | None:
    """Return the layer at an equation with its kernel; None where it is not the layer there.

    Args:
        eqn: the equation.
        inside: which of its operands are tracked.
        path: of the layer.
        parameter: of the layer.
        op: the layer.
    """
    labels = [label_of(value) for value in inside]
    if isinstance(op, Embedding):
        table = inside[0]
        if look_up(eqn, labels, 1) is None or table is None or table.index is None:
            return None
        view = look_up_view(eqn)
        # Only a look-up in the table as it is stored: indices into a transposed or sliced one would
        # be counted for the wrong rows.
        straight = np.array_equal(table.index, parameter.places)
        if view is None or table.counters or not straight:
            return None
        rows = np.zeros((1, 0), np.int64)
        outs = np.arange(op.weight.shape[1])[None]
        return LayerProduct(path, 0, view, Layout(rows, outs, np.zeros(1, np.int64)), ())
    if product(eqn, labels, 1) is None:
        return None
    # Which operand the kernel is: for a product with the kernel on the left its free axes come
    # first.
    side = 0 if labels[0] is not None else 1
    kernel = inside[side]
    if kernel is None or kernel.index is None:
        return None
    dense = eqn.primitive.name == "dot_general"
    layout = (_dense if dense else _window)(eqn, side, kernel, parameter, op)
    if layout is None:
        return None
    whole = matrix_view(eqn, side) if dense else window_view(eqn)
    return LayerProduct(path, side, whole, layout, kernel.counters)


def _dense(
    eqn: JaxprEqn, side: int, kernel: IndexedValue, parameter: ParameterIndex, op: Op
) -> Layout | None:
    """Return the layout at a dot_general, from the kernel as (batch, summed, other) axes."""
    assert kernel.index is not None
    contract, batch = param(eqn, "dimension_numbers")
    loops = len(kernel.counters)
    shape = kernel.index.shape[loops:]
    taken = (*batch[side], *contract[side])
    free = [axis for axis in range(len(shape)) if axis not in taken]
    order = [*range(loops), *(loops + axis for axis in (*taken, *free))]
    sizes = [
        math.prod(shape[axis] for axis in axes) for axes in (batch[side], contract[side], free)
    ]
    index = kernel.index.transpose(order).reshape(*kernel.index.shape[:loops], *sizes)
    # Place in a row (batch, summed) and in an output (batch, other) of each number of the kernel.
    b, c, f = np.ogrid[: sizes[0], : sizes[1], : sizes[2]]
    return _layout(index, b * sizes[1] + c, b * sizes[2] + f, loops, parameter, op)


def _window(
    eqn: JaxprEqn, side: int, kernel: IndexedValue, parameter: ParameterIndex, op: Op
) -> Layout | None:
    """Return the layout at a convolution, from the kernel as (outputs, inputs, positions)."""
    del side  # a kernel is always the right operand
    assert kernel.index is not None
    spec = param(eqn, "dimension_numbers").rhs_spec
    loops = len(kernel.counters)
    order = [*range(loops), *(loops + axis for axis in spec)]
    index = kernel.index.transpose(order)
    index = index.reshape(*index.shape[: loops + 2], -1)
    outputs, inputs, taps = index.shape[loops:]
    o, i, t = np.ogrid[:outputs, :inputs, :taps]
    # An output of a grouped convolution meets the channels of its group; rows have all channels.
    group = o // (outputs // param(eqn, "feature_group_count"))
    return _layout(index, (group * inputs + i) * taps + t, o, loops, parameter, op)


def _layout(
    index: npt.NDArray[np.int32],
    row: Ints,
    out: Ints,
    loops: int,
    parameter: ParameterIndex,
    op: Op,
) -> Layout | None:
    """Return the layout, from the place of each number of the kernel in a row and in an output.

    Args:
        index: (*loops, *shape), the places of the kernel's numbers.
        row: broadcasts to the shape, the place in a row of the equation that each is multiplied by.
        out: the same, the place in its output that each adds to.
        loops: how many loops there are.
        parameter: of the layer.
        op: the layer.
    """
    outputs, width = len(op.weight) // op.groups, math.prod(op.weight.shape[1:])
    shape = index.shape[loops:]
    row, out = np.broadcast_to(row, shape), np.broadcast_to(out, shape)
    first: tuple[Ints, Ints] | None = None
    every = []
    # One element for each turn of the loops around the equation.
    for element in index.reshape(-1, *shape):
        # From the place in the stored kernel to the place in the op's weight, which splits into
        # group, output of the group and place in a row of the op.
        number = parameter.numbers[element]
        group, rest = np.divmod(number, outputs * width)
        output, inner = np.divmod(rest, width)
        groups = np.unique(group)
        group_index = np.searchsorted(groups, group)
        # Written by all numbers of the kernel at once, then read back: where two numbers disagree
        # on the place of a row, the product is not the layer's, and there is no layout.
        rows = np.full((len(groups), width), -1)
        outs = np.full((len(groups), outputs), -1)
        rows[group_index, inner], outs[group_index, output] = row, out
        # Every place is written, by as many numbers as the groups have: none is missing or double.
        full = rows.min() >= 0 and outs.min() >= 0 and element.size == rows.size * outputs
        if not (
            full
            and np.all(rows[group_index, inner] == row)
            and np.all(outs[group_index, output] == out)
        ):
            return None
        if first is None:
            first = rows, outs
        # The places must not depend on the turn, as rows and outs are taken outside of the trace.
        elif not (np.array_equal(first[0], rows) and np.array_equal(first[1], outs)):
            return None
        every.append(groups)
    assert first is not None
    return Layout(*first, np.stack(every).reshape(*index.shape[:loops], -1))
