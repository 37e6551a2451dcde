"""Labelled values of a jaxpr: which parameter leaf they are, and along which axes they are cut."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
from jax.extend.core import JaxprEqn

from rankfold.errors import RankfoldError

Leaf: TypeAlias = Hashable
Shape: TypeAlias = tuple[int, ...]

CASTS = frozenset(
    {
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "mesh_cast",
        "name",
        "pvary",
        "reduce_precision",
        "reshard",
        "sharding_constraint",
        "stop_gradient",
    }
)
"""Operations that leave every number at its index."""
MOVING = CASTS | {"broadcast_in_dim", "reshape", "rev", "squeeze", "transpose"}
SLICING = frozenset({"dynamic_slice", "slice"})


@dataclass(frozen=True)
class Provenance:
    """A value that is a parameter leaf, or one slice of it.

    Attributes:
        leaf: which.
        slices: how many values like this one the leaf holds.
        axes: for each axis of the value, the axis of the leaf that it is; None where that is not
            known. None for all of them at the start, when they are the leaf's own.
        taken: the axes of the leaf along which the slice was taken.
    """

    leaf: Leaf
    slices: int = 1
    axes: tuple[int | None, ...] | None = None
    taken: tuple[int | None, ...] = ()


Label: TypeAlias = "Provenance | None"
"""None for what is not followed."""


def moved(eqn: JaxprEqn, labels: Sequence[Label]) -> Label:
    """The label of a result that holds the same numbers as its first operand, or a slice of it."""
    label = labels[0]
    if label is None or any(other is not None for other in labels[1:]):
        return None
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if eqn.primitive.name in MOVING:
        if math.prod(before) != math.prod(after):
            return None
        return replace(label, axes=_axes(eqn, label, before, after))
    one_of_a_stack = (
        eqn.primitive.name == "gather"
        and len(before) > 2
        and math.prod(shape_of(eqn.invars[1])[:-1]) == 1
    )
    if eqn.primitive.name in SLICING or one_of_a_stack:
        if not math.prod(after) or math.prod(before) % math.prod(after):
            return None
        axes, taken = label.axes, label.taken
        if axes is not None and len(before) == len(after):
            cut = [axis for axis, b, a in zip(axes, before, after, strict=True) if b != a]
            taken = (*taken, *cut)
        else:
            axes, taken = None, (*taken, None)
        ratio = math.prod(before) // math.prod(after)
        return replace(label, slices=label.slices * ratio, axes=axes, taken=taken)
    return None


def _axes(
    eqn: JaxprEqn, label: Provenance, before: Shape, after: Shape
) -> tuple[int | None, ...] | None:
    """Return which axis of the leaf each axis of a moved value is."""
    axes, name = label.axes, eqn.primitive.name
    if axes is None:
        return None
    # First, as the shape of a square matrix does not tell that it was transposed.
    if name in ("transpose", "rev"):
        return _permuted(eqn, axes)
    if before == after:
        return axes
    # Axes of one element come and go; the others keep their order.
    long = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    kept = iter(long)
    return tuple(next(kept) if size != 1 else None for size in after)


def _permuted(eqn: JaxprEqn, axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    if eqn.primitive.name == "rev":
        return axes
    return tuple(axes[axis] for axis in param(eqn, "permutation"))


def sliced_by_scan(labels: Sequence[Label], length: int) -> list[Label]:
    """The labels of what a scan hands to its body, slice by slice of the first axis."""
    inside: list[Label] = []
    for label in labels:
        if label is None:
            inside.append(None)
            continue
        first, rest = (None, None) if label.axes is None else (label.axes[0], label.axes[1:])
        slices = label.slices * length
        inside.append(replace(label, slices=slices, axes=rest, taken=(*label.taken, first)))
    return inside


def param(eqn: JaxprEqn, name: str) -> Any:
    """A parameter of an equation.

    Raises:
        RankfoldError: this version of JAX does not have it.
    """
    if name not in eqn.params:
        raise RankfoldError(
            f"jax {jax.__version__} writes {eqn.primitive.name!r} without {name!r}: this version "
            "of rankfold cannot read its jaxprs; use an older jax, from 0.8 on, or a newer "
            "rankfold"
        )
    return eqn.params[name]


def shape_of(value: Any) -> Shape:
    """The shape of a variable or a literal of a jaxpr."""
    return tuple(getattr(value.aval, "shape", ()))
