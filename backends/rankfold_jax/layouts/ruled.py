"""Layouts of layers that a layer rule reads, and the stock layers in their place.

What a rule reads may be the layer's parameters laid out in some other way, or anything made of
them. In the first case moments are gathered and new numbers can be put into the layer; the layout
is found by reading the layer with its places for numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Extent, Linear, Op, macs
from rankfold_jax.jaxpr.parameter_uses import ParameterUse
from rankfold_jax.layouts.base import Call, LayerLayout, Roles, Stage, contiguous
from rankfold_jax.layouts.conv import stages_of
from rankfold_jax.layouts.dense import DenseForm, EmbedForm
from rankfold_jax.layouts.interpolative import interpolative_stage

_LARGEST = 2**24
"""Places of numbers are exact in float32 up to here."""
NO_LAYOUT = "its layer rule reads a layout that new values cannot be written in"


@dataclass(frozen=True, eq=False)
class RuledForm:
    """Layout of a layer whose parameters a rule lays out as an op.

    Attributes:
        read: the op of the layer with other numbers in its kernel and its bias.
        kernel_shape: of the parameter that holds the weight.
        bias_shape: of the one that holds the bias; () without one.
    """

    read: Callable[[Array, Array | None], Op]
    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...] = ()

    @property
    def roles(self) -> Roles:
        """Empty roles: a rule does not tell them."""
        return ("",) * len(self.kernel_shape)

    @property
    def bias_roles(self) -> Roles:
        """Empty roles: a rule does not tell them."""
        return ("",) * len(self.bias_shape)

    def op(self, kernel: Array, bias: Array | None) -> Op:
        """Read the op by the rule."""
        # A rule reads one layer: the stack has length 1.
        return self.read(kernel[0], None if bias is None else bias[0])

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Build stock layers."""
        return stages(chain)

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return None: extents are read off the layer's inputs."""
        return None

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Run all rows, or all of a batch, at once."""
        y: Array = call(x[None])[0]
        return y


def dtype_of(arrays: Iterable[Any]) -> Any:
    """Return the dtype of the largest array of floating-point numbers.

    Raises:
        Refused: there is none.
    """
    # Nested parameters, those of submodules, have no dtype and are passed over.
    floats = [a for a in arrays if jnp.issubdtype(getattr(a, "dtype", int), jnp.floating)]
    if not floats:
        raise Refused("it has no parameters of floating-point numbers")
    # The kernel, most likely: biases and scales may be in another dtype.
    return max(floats, key=lambda array: array.size).dtype


def stages(chain: Chain) -> tuple[Stage, ...]:
    """Build the stock layers for a chain, channels last.

    Raises:
        Refused: Flax has none for one of the ops.
    """
    stages = []
    for op in chain:
        bias = None if op.bias is None else contiguous(op.bias)[None]
        if isinstance(op, Linear) and op.pivots is not None:
            stages.append(interpolative_stage(op))
        elif isinstance(op, Linear):
            if op.groups != 1:
                raise Refused(
                    "its rule reads it as a Linear of several groups and must build the layer in "
                    "its place"
                )
            form: LayerLayout = DenseForm(op.weight.shape[1:], op.weight.shape[:1])
            stages.append(Stage(form, contiguous(op.weight.T)[None], bias))
        elif isinstance(op, Embedding):
            stages.append(Stage(EmbedForm(*op.weight.shape), contiguous(op.weight)[None], None))
        else:
            stages += stages_of((op,), 1)
    return tuple(stages)


def layout(
    op: Op, params: Mapping[str, Array], read: Callable[[Mapping[str, Array]], Op]
) -> tuple[str, str | None] | None:
    """Return the names of the parameters that are an op's weight and bias, laid out otherwise.

    Args:
        op: as the rule reads the layer.
        params: the parameters of the layer, by name.
        read: the op of the layer with other parameters.

    Returns:
        Their names, the second None for an op without a bias; None where there are no such.
    """
    stages: list[str | None] = []
    for part in ("weight", "bias"):
        wanted = getattr(op, part)
        if wanted is None:
            stages.append(None)
            continue
        name = next((n for n in params if _is_laid_out(n, part, wanted, params, read)), None)
        if name is None:
            return None
        stages.append(name)
    kernel, bias = stages
    # One parameter cannot hold both, or filling the one would change the other.
    return None if kernel is None or kernel == bias else (kernel, bias)


def _is_laid_out(
    name: str,
    part: str,
    wanted: Array,
    params: Mapping[str, Array],
    read: Callable[[Mapping[str, Array]], Op],
) -> bool:
    value = params[name]
    if value.size != wanted.size or value.size > _LARGEST:
        return False
    # One parameter at a time is filled with its places. If these come out as the weight, each
    # exactly once, the rule only lays it out: any scaling, sum or fold changes or drops some.
    places = np.arange(value.size, dtype=np.float32).reshape(value.shape)
    try:
        numbers = getattr(read({**params, name: places}), part)
    except Refused:  # which its rule may do for numbers that no layer has
        return False
    return numbers is not None and np.array_equal(np.sort(numbers, axis=None), places.reshape(-1))


def extents(op: Op, shapes: Sequence[tuple[int, ...]], counted: int) -> tuple[Extent, ...]:
    """Return the extents of a layer's inputs, channels last.

    Args:
        op: the layer.
        shapes: of its input at each call in a trace, which goes through the body of a loop once.
        counted: the multiply-accumulates of the layer in all turns of all loops.
    """
    stages: list[Extent] = []
    for shape in shapes:
        if isinstance(op, Embedding):
            stages.append(shape)
        # An input without a batch axis.
        elif isinstance(op, (Conv, ConvTranspose)) and len(shape) < op.weight.ndim:
            stages.append((1, *shape[:-1]))
        else:
            stages.append(shape[:-1])
    # A loop's body is traced once, but the jaxpr tells how often it runs: the quotient is the
    # number of turns.
    once = sum(macs((op,), extent) for extent in stages)
    return tuple(stages) * (max(1, counted // once) if once else 1)


def run(op: Op, call: Callable[[Array], Array], x: Array) -> Array:
    """Return the output of a channels-last layer for an input laid out as ops have it."""
    if isinstance(op, (Linear, Embedding)):
        return call(x)
    return np.moveaxis(call(np.ascontiguousarray(np.moveaxis(x, 1, -1))), -1, 1)
