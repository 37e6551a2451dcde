"""Layouts in which Flax's layers hold an op, shared by NNX and Linen.

A *form* is the shape and geometry of one Flax layer, without its numbers. It turns the layer's
arrays into an op, and a chain of ops into stages, each with a form and arrays of its own. Arrays
have one leading axis more than the layer's: the *stack*, of length 1 for an ordinary layer and of
length n for n layers of one shape under vmap or scan. A stack of n layers is an op of n times the
groups.

The axes of a kernel have *roles*: "in0", "in1" ..., "out0" ..., "k0" ... for space and "group0" ...
for groups. The stages of a chain keep the names and shardings of the roles they have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from rankfold import linalg
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Linear, Op
from rankfold_jax.jaxpr.parameter_uses import ParameterUse

Roles: TypeAlias = tuple[str, ...]
Call: TypeAlias = Callable[[Array], Array]


class LayerLayout(Protocol):
    """Shape and geometry of one Flax layer."""

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel of one layer."""

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias of one layer, where it has one."""

    @property
    def roles(self) -> Roles:
        """Roles of the axes of the kernel."""

    @property
    def bias_roles(self) -> Roles:
        """Roles of the axes of the bias."""

    def op(self, kernel: Array, bias: Array | None) -> Op:
        """Return the op of stacked arrays (n, *kernel_shape) and (n, *bias_shape).

        Raises:
            Refused: it computes what no op does.
        """

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Return layers for a chain that was made from this form's op.

        Raises:
            Refused: Flax has no layer for a stage.
        """

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return the extent of the layer's input at a use of its kernel; None to leave it out.

        Raises:
            Refused: the layer itself does not use its kernel so.
        """

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Return the op's output for an input x of the op, computed by a layer of this form.

        Args:
            call: the layer, from inputs with the stack in front to outputs with it in front.
            x: the layout of `rankfold.ops.reference.forward`.
            stack: its length.
        """


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer of a chain: its form and its stacked arrays."""

    form: LayerLayout
    kernel: Array
    bias: Array | None


def keep(role: str, first: bool, last: bool) -> bool:
    """True if the axis of a stage is an axis of the layer that was decomposed."""
    # Between two stages of a chain lies a rank axis, which no axis of the layer corresponds to.
    if role.startswith("in"):
        return first
    if role.startswith("out"):
        return last
    return True


def matrices(stage: Linear, blocks: int) -> Array:
    """Return the weight of a grouped Linear as (blocks, in, out).

    Raises:
        Refused: it has another number of groups.
    """
    if stage.groups != blocks:
        raise Refused(f"the chain has {stage.groups} groups in place of {blocks}")
    weight = stage.weight
    # An op is (out, in); Flax multiplies inputs from the left, (in, out).
    return weight.reshape(blocks, -1, weight.shape[1]).swapaxes(1, 2)


def contiguous(array: Array) -> Array:
    """Return a copy in C order, so that nothing is shared with the op it was made from."""
    return linalg.copied(array)


def linears(chain: Chain) -> tuple[Linear, ...]:
    """Return a chain of fully connected layers as it is, typed as one.

    Raises:
        Refused: it is not.
    """
    for stage in chain:
        if not isinstance(stage, Linear):
            raise Refused(f"Flax has no {type(stage).__name__} in place of a fully connected layer")
    return tuple(stage for stage in chain if isinstance(stage, Linear))


def foreign(use: ParameterUse) -> Refused:
    """Return the refusal of a layer whose kernel somebody else uses."""
    return Refused(f"its kernel is also used by a {use.primitive} of another kind")
