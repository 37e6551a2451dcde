"""Products and look-ups with a labelled parameter leaf, their extents and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn

from rankfold_jax.jaxpr.provenance import Leaf, Provenance, Shape, param, shape_of

PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})


@dataclass(frozen=True)
class ParameterUse:
    """A product or a look-up with a parameter leaf.

    Attributes:
        leaf: which.
        primitive: "dot_general", "conv_general_dilated" or "gather".
        weight: the shape of the leaf's operand.
        input: the shape of the other operand; of the indices for a look-up.
        output: the shape of the result.
        extent: the extent of the input as `rankfold.ops` defines it, without stacked axes. Repeats
            in a loop are folded into its first axis.
        macs: multiply-accumulates, all repeats and slices together; a loop of unknown length
            counts once.
        stacked: axes of the leaf along which it is a stack of kernels, as far as they are known.
        summed: axes of the leaf that are summed over, so that it is no stack along them.
        times: how often each slice is used.
    """

    leaf: Leaf
    primitive: str
    weight: Shape
    input: Shape
    output: Shape
    extent: Shape
    macs: int
    stacked: frozenset[int] = frozenset()
    summed: frozenset[int] = frozenset()
    times: int = 1


def product(
    eqn: JaxprEqn, labels: Sequence[Provenance | None], repeats: int
) -> ParameterUse | None:
    """A product of a labelled operand with one that is not."""
    name = eqn.primitive.name
    if name not in PRODUCTS or sum(label is not None for label in labels) != 1:
        return None
    side = 0 if labels[0] is not None else 1
    label = labels[side]
    assert label is not None
    weight, other = shape_of(eqn.invars[side]), shape_of(eqn.invars[1 - side])
    output = shape_of(eqn.outvars[0])
    times = -(-repeats // label.slices)
    if name == "dot_general":
        (contract, batch) = param(eqn, "dimension_numbers")
        taken = {*contract[1 - side], *batch[1 - side]}
        free = tuple(size for axis, size in enumerate(other) if axis not in taken)
        extent = (times, *free) if times > 1 else free
        macs = math.prod(output) * math.prod(weight[axis] for axis in contract[side])
        known = label.axes or (None,) * len(weight)
        stacked = _known(*label.taken, *(known[axis] for axis in batch[side]))
        summed = _known(*(known[axis] for axis in contract[side]))
        macs *= repeats
        return ParameterUse(
            label.leaf, name, weight, other, output, extent, macs, stacked, summed, times
        )
    if side == 0 or param(eqn, "batch_group_count") != 1:
        return None
    spec = param(eqn, "dimension_numbers")
    batch_axis, _, *spatial = spec.lhs_spec
    extent = (other[batch_axis] * times, *(other[axis] for axis in spatial))
    transposed = any(step > 1 for step in param(eqn, "lhs_dilation"))
    positions = math.prod(extent) // times if transposed else math.prod(output)
    rows = weight[spec.rhs_spec[0]]
    macs = math.prod(weight) * (positions if transposed else positions // rows)
    stacked = _known(*label.taken)
    macs *= repeats
    return ParameterUse(label.leaf, name, weight, other, output, extent, macs, stacked, times=times)


def _known(*axes: int | None) -> frozenset[int]:
    return frozenset(axis for axis in axes if axis is not None)


def look_up(
    eqn: JaxprEqn, labels: Sequence[Provenance | None], repeats: int
) -> ParameterUse | None:
    """A gather of rows of a labelled table."""
    if eqn.primitive.name != "gather" or labels[0] is None or labels[1] is not None:
        return None
    indices = shape_of(eqn.invars[1])[:-1]
    extent = (repeats, *indices) if repeats > 1 else indices
    table, output = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    return ParameterUse(labels[0].leaf, "gather", table, indices, output, extent, 0, times=repeats)
