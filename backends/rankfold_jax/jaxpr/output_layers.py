"""Layers that give the outputs of a model, read off its jaxpr.

A product of data with a layer's kernel is a call of it, which marks what it gives; see
`rankfold.adapters.output_marks` for what becomes of marks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from jax.extend.core import ClosedJaxpr, JaxprEqn

from rankfold.adapters.output_marks import Activation, Calls, beside, is_internal
from rankfold_jax.jaxpr import control_flow as flow
from rankfold_jax.jaxpr.parameter_uses import PRODUCTS
from rankfold_jax.jaxpr.provenance import shape_of

_JOINING = frozenset(
    [
        *("concatenate", "dynamic_update_slice", "pad", "scatter", "select_n", "stack"),
        "select_and_scatter",
    ]
)
"""The operands stand beside each other in the result."""
_ADDING = frozenset(["add", "add_any", "sub"])
_BY_ELEMENT = frozenset(
    [
        *(*_ADDING, "mul", "div", "max", "min", "pow", "rem", "atan2", "complex"),
        *("and", "or", "xor", "eq", "ne", "ge", "gt", "le", "lt", "clamp", "nextafter"),
    ]
)
"""Operations of several operands that join these element by element."""
_LOOK_UPS = frozenset(["gather", "dynamic_slice"])
"""Only the first operand is in the result, the others say where."""


@dataclass(frozen=True)
class FromArrays:
    """A value computed from the model's arrays alone.

    Attributes:
        layers: that these arrays belong to.
        weights: whether weights are among them that are more than one number.
    """

    layers: frozenset[str] = frozenset()
    weights: bool = False


class FromInputs(Enum):
    """A value computed from the model's inputs alone."""

    INPUT = 0


State: TypeAlias = Activation | FromArrays | FromInputs
_CONSTANT = FromArrays()


@dataclass(frozen=True)
class Leaf:
    """One of a model's arrays: the layer that it belongs to, and whether it was learned."""

    layer: str | None = None
    learned: bool = False


def output_layers(
    closed: ClosedJaxpr, leaves: Sequence[Leaf], names: Sequence[str]
) -> frozenset[str]:
    """Return the layers whose output is an output of the model; see `rankfold.adapters.base.Trace`.

    Args:
        closed: of a function whose first inputs are the model's arrays.
        leaves: what these are; a number alone scales, whatever it is.
        names: of the values that the function returns, by which caches are known.
    """
    states: list[State] = []
    for leaf, var in zip(leaves, closed.jaxpr.invars, strict=False):
        layers = frozenset(() if leaf.layer is None else (leaf.layer,))
        states.append(FromArrays(layers, leaf.learned and any(size > 1 for size in shape_of(var))))
    states += [FromInputs.INPUT] * (len(closed.jaxpr.invars) - len(states))
    program = _Program()
    outputs = program.walk(closed, states, ())
    shown = [
        (var, state)
        for var, state, name in zip(closed.jaxpr.outvars, outputs, names, strict=True)
        if isinstance(state, Activation) and not is_internal(name)
    ]
    # A number beside other outputs is a penalty or a statistic.
    arrays = [state for var, state in shown if shape_of(var)] or [state for _, state in shown]
    return program.calls.layers(arrays)


class _Program:
    """Goes through a jaxpr.

    Attributes:
        calls: the uses of kernels.
    """

    def __init__(self) -> None:
        self.calls = Calls()

    def walk(
        self, closed: ClosedJaxpr, inputs: Sequence[State], where: tuple[int, ...]
    ) -> list[State]:
        """Return the states of a jaxpr's outputs."""

        def step(eqn: JaxprEqn, operands: list[State]) -> list[State]:
            # Equations tell the calls of a layer apart.
            return self._step(eqn, operands, (*where, id(eqn)))

        return flow.evaluated(closed, inputs, step, lambda _: _CONSTANT)

    def _step(self, eqn: JaxprEqn, operands: list[State], where: tuple[int, ...]) -> list[State]:
        def run(body: ClosedJaxpr, inputs: Sequence[State], _: object = None) -> list[State]:
            return self.walk(body, inputs, where)

        match flow.split(eqn):
            case flow.Scan() | flow.While() as loop:
                # Turns share their equations, so that those of a layer are one call.
                return flow.settled(loop, operands, run, _either, object)[1]
            case flow.Cond(branches):
                columns = zip(*(run(branch, operands[1:]) for branch in branches), strict=True)
                return [_either(column) for column in columns]
            case flow.Call(body) | flow.ShardMap(body):
                return run(body, operands)
        name = eqn.primitive.name
        size = max((math.prod(shape_of(var)) for var in eqn.outvars), default=1)
        if name in PRODUCTS:
            return [self._product(operands, where, size)] * len(eqn.outvars)
        if name in _LOOK_UPS:
            table, *index = operands
            data = any(not isinstance(state, FromArrays) for state in index)
            if isinstance(table, FromArrays) and table.weights and data:
                rows = self._product([table, FromInputs.INPUT], where, size, looks_up=True)
                return [rows] * len(eqn.outvars)
            operands = [table]
        elif name == "select_n":
            # What chooses is not in the result.
            operands = operands[1:]
        return [self._joined(name, operands, size)] * len(eqn.outvars)

    def _product(
        self, operands: Sequence[State], where: Hashable, size: int, looks_up: bool = False
    ) -> State:
        """Return the state of a product: the output of a layer where one operand is its kernel."""
        kernels = [state for state in operands if isinstance(state, FromArrays) and state.layers]
        if len(kernels) != 1 or all(isinstance(state, FromArrays) for state in operands):
            return self._joined("product", operands, size)
        data = [state for state in operands if isinstance(state, Activation)]
        return beside(
            self.calls.mark(layer, data, size=size, looks_up=looks_up, location=where)
            for layer in kernels[0].layers
        )

    def _joined(self, name: str, operands: Sequence[State], size: int) -> State:
        """Return the state of a result of some elements, from those of its operands."""
        activations = [state for state in operands if isinstance(state, Activation)]
        constants = [state for state in operands if isinstance(state, FromArrays)]
        weights = any(state.weights for state in constants)
        if not activations:
            if len(constants) == len(operands):
                layers = frozenset[str]().union(*(state.layers for state in constants))
                # A number picked from a weight is as a learned scalar.
                return FromArrays(layers, weights and size > 1)
            return Activation() if weights else FromInputs.INPUT
        if name in _JOINING:
            return beside(activations)
        return self.calls.joined(
            activations,
            size,
            by_element=name in _BY_ELEMENT,
            weights=weights,
            adds=name in _ADDING,
        )


def _either(states: Sequence[State]) -> State:
    """Return the state of a value that is one of several."""
    if len(set(states)) == 1:
        return states[0]
    constants = [state for state in states if isinstance(state, FromArrays)]
    weights = any(state.weights for state in constants)
    if len(constants) == len(states):
        return FromArrays(frozenset[str]().union(*(state.layers for state in constants)), weights)
    activations = [state for state in states if isinstance(state, Activation)]
    if not activations and not weights:
        return FromInputs.INPUT
    both = beside(activations)
    known = not weights and all(state.calls for state in activations)
    return both if known else Activation(0, both.ancestors)
