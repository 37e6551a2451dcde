"""Parameters of a Linen model: reading, boxing and exchange."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold_jax.layouts.base import Roles
from rankfold_jax.layouts.sharding import Axes, to_array
from rankfold_jax.layouts.stacks import StackedAxes
from rankfold_jax.linen.interception import Path
from rankfold_jax.linen.layers import StageSpec, unboxed
from rankfold_jax.linen.rules import RuledLayer
from rankfold_jax.linen.tracing import Recorded, leaves

_FLOATS = (jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16)


@dataclass(frozen=True, eq=False)
class Built:
    """Chain in place of one layer: specifications of its layers, and their parameters.

    Attributes:
        specs: of the stages.
        params: {'lr0': {'kernel': ...}, ...}.
        layer: the layer replaced.
        stacks: of its kernel and of its bias.
        ruled: the layer, where a layer rule reads it.
    """

    specs: tuple[StageSpec, ...]
    params: dict[str, dict[str, Any]]
    layer: Recorded
    stacks: list[StackedAxes]
    ruled: RuledLayer | None = None


@dataclass(frozen=True, eq=False)
class Refilled:
    """Layer that stays, with other numbers.

    Attributes:
        params: its parameters, boxed as they were.
    """

    params: dict[str, Any]


def check_array(name: str, value: Any) -> None:
    """Refuse a kernel or a bias that is boxed, placed or typed in a way that is not known.

    Raises:
        Refused: and why.
    """
    # `nn.Partitioned` names axes. Other boxes may do anything with the value when it is unboxed.
    if isinstance(value, nn.meta.AxisMetadata) and not isinstance(value, nn.Partitioned):
        raise Refused(f"its {name} is in a {type(value).__name__}, which is not known")
    array = unboxed(value)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise Refused(f"its {name} lies on devices of other processes")
    if array.dtype not in _FLOATS:
        raise Refused(f"its {name} is {array.dtype}; a float dtype is needed")


def numbers_of(value: Any) -> Array:
    """Return the numbers of a parameter; zeros for one that has only a shape."""
    return to_array(unboxed(value))


def double(value: Any) -> Array:
    """Return the numbers of a parameter in float64."""
    numbers: Array = np.asarray(unboxed(value)).astype(np.float64)
    return numbers


def boxed(
    like: Any,
    numbers: Array,
    stack: StackedAxes,
    before: Roles,
    after: Roles,
    *,
    first: bool,
    last: bool,
) -> tuple[Any, Any]:
    """Return a stage's parameter, boxed as the layer's, and the empty box of one layer."""
    axes = Axes(stack.roles(before))
    roles = stack.roles(after)
    array = axes.placed(stack.back(numbers), unboxed(like), roles, first=first, last=last)
    if not isinstance(like, nn.Partitioned):
        return array, None
    names: Any = axes.handed_on(like.names, roles, first=first, last=last)
    # One layer under vmap or scan sees its parameter without the axes of the stack; Flax adds their
    # names itself.
    remaining = tuple(
        name for name, role in zip(names, roles, strict=True) if not role.startswith("stack")
    )
    # The second box is what the stage's initializer is given, which makes one layer of a stack.
    return like.replace(value=array, names=names), like.replace(value=None, names=remaining)


def refilled_param(like: Any, numbers: Array, stack: StackedAxes, roles: Roles) -> Any:
    """Return a parameter of a layer with other numbers, boxed as it was."""
    every = stack.roles(roles)
    array = Axes(every).placed(numbers, unboxed(like), every, first=True, last=True)
    return like.replace(value=array) if isinstance(like, nn.Partitioned) else array


def params_of(model: nn.Module) -> Any:
    """Return the tree of a bound module's parameters."""
    return model.variables.get("params", {})


def names_alone(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the names that arrays have in a checkpoint of the parameters alone.

    Nothing in it says that it is Linen's, so the stages of a chain are called as those of NNX are.
    """
    alone: dict[str, tuple[str, ...]] = {}
    for name in names:
        collection, _, path = name.partition(".")
        if collection == "params":
            alone[name] = path, re.sub(r"\blr(?=\d+\.)", "layers.", path)
    return alone


def nodes(model: nn.Module) -> Mapping[Path, dict[str, Any]]:
    """Return the parameters of every module that has some of its own."""
    nodes: dict[Path, dict[str, Any]] = {}
    for path, value in leaves(params_of(model)):
        # The last part of a path is the parameter's own name.
        nodes.setdefault(path[:-1], {})[path[-1]] = value
    return nodes


def put_params(params: dict[str, Any], path: Path, built: Built | Refilled) -> None:
    """Exchange the parameters of the layer at a path, in place."""
    node = params
    for name in path:
        node = node[name]
    ruled = isinstance(built, Built) and built.ruled is not None
    # A rule answers for all parameters of its layer; a stock layer has these alone.
    for name in list(node) if ruled else ("kernel", "embedding", "bias"):
        node.pop(name, None)
    node.update(built.params)
