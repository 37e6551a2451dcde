"""Layers that give the outputs of a model, read off its jaxpr.

What a product of data with a layer's kernel gives is marked with that call. The mark goes on to
what is computed from that value alone: reshaped, selected, normalized, squashed, with weights,
constants or inputs of the model added or multiplied element by element, or beside others in one
array. Values of several calls that are joined element by element keep the marks of all, unless one
of the calls has seen what another gave: such are links of a residual chain. Any other activation or
weight ends a mark.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import or_
from typing import TypeAlias

from jax.extend.core import ClosedJaxpr, JaxprEqn

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
_INTERNAL = ("past", "cache", "mems", "attentions", "hidden_states")
"""Parts of the names of returned values that a model keeps for itself or shows of its inside."""


@dataclass(frozen=True)
class Activation:
    """A value computed from the model's inputs and arrays.

    Attributes:
        calls: of layers that it is computed from alone, a bit for each; 0 where these are mixed.
        ancestors: all calls of layers that it is computed from, a bit for each.
    """

    calls: int = 0
    ancestors: int = 0


@dataclass(frozen=True)
class Own:
    """A value computed from the model's arrays alone.

    Attributes:
        layers: that these arrays belong to.
        weights: whether weights are among them that are more than one number.
    """

    layers: frozenset[str] = frozenset()
    weights: bool = False


class Given(Enum):
    """A value computed from the model's inputs alone."""

    INPUT = 0


State: TypeAlias = Activation | Own | Given
_CONSTANT = Own()


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
        states.append(Own(layers, leaf.learned and any(size > 1 for size in shape_of(var))))
    states += [Given.INPUT] * (len(closed.jaxpr.invars) - len(states))
    calls = _Calls()
    outputs = calls.walk(closed, states, ())
    shown = [
        (var, state.calls)
        for var, state, name in zip(closed.jaxpr.outvars, outputs, names, strict=True)
        if isinstance(state, Activation) and not any(word in name.lower() for word in _INTERNAL)
    ]
    # A number beside other outputs is a penalty or a statistic.
    arrays = [bits for var, bits in shown if shape_of(var)] or [bits for _, bits in shown]
    return frozenset(calls.seen[i].layer for i in _bits(_union(arrays)))


@dataclass
class _Call:
    """A use of a layer's kernel.

    Attributes:
        layer: whose kernel is used.
        size: how many elements it gives.
        looks_up: whether these are rows of a table.
        ancestors: calls of layers that its input is computed from, a bit for each.
    """

    layer: str
    size: int
    looks_up: bool
    ancestors: int = 0


class _Calls:
    """Goes through a jaxpr and numbers the uses of kernels.

    Attributes:
        seen: the uses; the bit of each is its place in this list.
    """

    def __init__(self) -> None:
        self.seen: list[_Call] = []
        self._numbers: dict[tuple[str, Hashable], int] = {}

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
            data = any(not isinstance(state, Own) for state in index)
            if isinstance(table, Own) and table.weights and data:
                rows = self._product([table, Given.INPUT], where, size, looks_up=True)
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
        kernels = [state for state in operands if isinstance(state, Own) and state.layers]
        if len(kernels) != 1 or all(isinstance(state, Own) for state in operands):
            return self._joined("product", operands, size)
        data = _union(state.ancestors for state in operands if isinstance(state, Activation))
        bits = 0
        for layer in kernels[0].layers:
            number = self._numbers.setdefault((layer, where), len(self.seen))
            if number == len(self.seen):
                self.seen.append(_Call(layer, size, looks_up))
            self.seen[number].ancestors |= data
            bits |= 1 << number
        return Activation(bits, data | bits)

    def _joined(self, name: str, operands: Sequence[State], size: int) -> State:
        """Return the state of a result of some elements, from those of its operands."""
        activations = [state for state in operands if isinstance(state, Activation)]
        constants = [state for state in operands if isinstance(state, Own)]
        weights = any(state.weights for state in constants)
        if not activations:
            if len(constants) == len(operands):
                layers = frozenset[str]().union(*(state.layers for state in constants))
                # A number picked from a weight is as a learned scalar.
                return Own(layers, weights and size > 1)
            return Activation() if weights else Given.INPUT
        calls = _union(state.calls for state in activations)
        ancestors = _union(state.ancestors for state in activations)
        several = len({state.calls for state in activations}) > 1
        if name not in _JOINING and (several or weights):
            uses = [self.seen[i] for i in _bits(calls)]
            apart = (
                name in _BY_ELEMENT
                # A factor that spreads a value over further elements is that of a matrix product.
                and not (
                    weights
                    and name not in _ADDING
                    and size > max((use.size for use in uses), default=0)
                )
                # One that is mixed; and rows of tables added up or multiplied are features.
                and not (several and not all(state.calls for state in activations))
                and not (several and any(use.looks_up for use in uses))
                and not self._in_chain(calls)
            )
            calls = calls if apart else 0
        return Activation(calls, ancestors)

    def _in_chain(self, calls: int) -> bool:
        """Return whether one of some calls has seen what another of them gave.

        Calls of one layer, which refines its output step by step, are no chain.
        """
        return any(
            self.seen[i].layer != self.seen[j].layer
            for i in _bits(calls)
            for j in _bits(self.seen[i].ancestors & calls)
        )


def _either(states: Sequence[State]) -> State:
    """Return the state of a value that is one of several."""
    if len(set(states)) == 1:
        return states[0]
    constants = [state for state in states if isinstance(state, Own)]
    weights = any(state.weights for state in constants)
    if len(constants) == len(states):
        return Own(frozenset[str]().union(*(state.layers for state in constants)), weights)
    activations = [state for state in states if isinstance(state, Activation)]
    if not activations and not weights:
        return Given.INPUT
    ancestors = _union(state.ancestors for state in activations)
    if weights or not all(state.calls for state in activations):
        return Activation(0, ancestors)
    return Activation(_union(state.calls for state in activations), ancestors)


def _union(bits: Iterable[int]) -> int:
    return reduce(or_, bits, 0)


def _bits(number: int) -> Iterator[int]:
    """Yield the places of the bits of a number."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
