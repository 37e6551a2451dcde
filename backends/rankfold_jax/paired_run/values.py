"""Values of two runs of a jaxpr side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from rankfold_jax.jaxpr import control_flow as flow
from rankfold_jax.jaxpr.dataflow import bind
from rankfold_jax.jaxpr.element_index import IndexedValue, moved_by


@dataclass(frozen=True, eq=False)
class DeferredParameter:
    """A parameter moved about, made when it is read.

    Attributes:
        tracked: which, and the places of its numbers.
        steps: from the parameter to the value.
    """

    tracked: IndexedValue
    steps: tuple[Callable[[Any], Any], ...] = ()

    def of(self, value: Any) -> Any:
        """Compute the value, from the parameter's."""
        for step in self.steps:
            value = step(value)
        return value


Pair: TypeAlias = tuple[Any, Any]
"""A value in the original and in the compressed run, the same object where they agree."""
Value: TypeAlias = "Pair | DeferredParameter"


def both(eqn: JaxprEqn, pairs: Sequence[Pair]) -> list[Value]:
    """Return the outputs of an equation in both runs, computed once where they agree."""
    first = bind(eqn, [pair[0] for pair in pairs])
    if all(a is b for a, b in pairs):
        return [(y, y) for y in first]
    return list(zip(first, bind(eqn, [pair[1] for pair in pairs]), strict=True))


def moved_lazily(eqn: JaxprEqn, arguments: Sequence[Value]) -> DeferredParameter | None:
    """Return the result of an equation that only moves a parameter about; None of any other."""
    # Where to is the same in both runs, or there is no one place of each number.
    first, *others = arguments
    if not isinstance(first, DeferredParameter):
        return None
    fixed = []
    for other in others:
        if isinstance(other, DeferredParameter) or other[0] is not other[1]:
            return None
        fixed.append(other[0])
    tracked = moved_by(eqn, [first.tracked, *(None for _ in fixed)], [None, *fixed])
    if tracked is None:
        return None
    return DeferredParameter(tracked, (*first.steps, lambda value: bind(eqn, [value, *fixed])[0]))


def structure(jaxpr: Jaxpr) -> tuple[Any, ...]:
    """Return the primitives of a jaxpr, those of what it calls included."""
    names: list[Any] = []
    for eqn in jaxpr.eqns:
        inner = flow.split(eqn)
        body = structure(inner.body.jaxpr) if isinstance(inner, flow.Call) else None
        names.append((eqn.primitive.name, body))
    return tuple(names)


def turns_of(scan: flow.Scan) -> tuple[Any, ...]:
    """Return how often a scan turns, and what it does in a turn."""
    numbers = (scan.length, scan.reverse, scan.constants, scan.carried)
    return (*numbers, structure(scan.body.jaxpr))


def read(env: Mapping[Var, Value], variables: Sequence[Any]) -> list[Value]:
    """Return the values of variables and literals."""
    return [(v.val, v.val) if isinstance(v, Literal) else env[v] for v in variables]


def last_reads(jaxpr: Jaxpr) -> dict[int, list[Var]]:
    """List for each equation the values that nobody reads after it."""
    last: dict[Var, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        for var in (*eqn.invars, *eqn.outvars):
            if not isinstance(var, Literal):
                last[var] = index
    for var in jaxpr.outvars:
        if not isinstance(var, Literal):
            last.pop(var, None)
    ends: dict[int, list[Var]] = {}
    for var, index in last.items():
        ends.setdefault(index, []).append(var)
    return ends


def slice_of(value: Value, length: int, number: int) -> Value:
    """Return what one turn of a scan over a value is given."""

    def cut(x: Any) -> Any:
        return lax.dynamic_index_in_dim(x, np.int32(number), 0, keepdims=False)

    if isinstance(value, DeferredParameter):
        return DeferredParameter(value.tracked.sliced(length, number), (*value.steps, cut))
    first = cut(value[0])
    return first, first if value[0] is value[1] else cut(value[1])


def stacked(rows: Sequence[Pair]) -> Pair:
    """Return what the turns of a scan gave, as one value."""
    first = jnp.stack([row[0] for row in rows])
    if all(a is b for a, b in rows):
        return first, first
    return first, jnp.stack([row[1] for row in rows])
