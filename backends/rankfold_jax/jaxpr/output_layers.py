"""Layers that give the outputs of a model, read off its jaxpr.

What a product of data with a layer's kernel gives is marked with the layer. The mark goes on to
what is computed from that value alone: reshaped, selected, scaled, squashed, with biases, constants
or inputs of the model added, or beside others in one array. Another activation or another weight
ends it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from jax.extend.core import ClosedJaxpr, JaxprEqn

from rankfold_jax.jaxpr import control_flow as flow
from rankfold_jax.jaxpr.parameter_uses import PRODUCTS
from rankfold_jax.jaxpr.provenance import shape_of

_JOINING = frozenset(
    ["concatenate", "dynamic_update_slice", "pad", "scatter", "select_n", "select_and_scatter"]
)
"""The operands stand beside each other in the result."""
_ADDING = frozenset(["add", "add_any", "sub"])
_LOOK_UPS = frozenset(["gather", "dynamic_slice"])
"""Only the first operand is in the result, the others say where."""
_INTERNAL = ("past", "cache", "mems", "attentions", "hidden_states")
"""Parts of the names of returned values that a model keeps for itself or shows of its inside."""

Use: TypeAlias = tuple[str, Hashable]
"""A layer and where its kernel is used."""


@dataclass(frozen=True)
class Made:
    """An activation.

    Attributes:
        calls: of the layers that it is computed from alone; none where it is mixed.
    """

    calls: frozenset[Use] = frozenset()


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


State: TypeAlias = Made | Own | Given
_CONSTANT, _MIXED = Own(), Made()


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
    outputs = _walk(closed, states, ())
    return frozenset(
        layer
        for state, name in zip(outputs, names, strict=True)
        if isinstance(state, Made) and not any(word in name.lower() for word in _INTERNAL)
        for layer, _ in state.calls
    )


def _walk(closed: ClosedJaxpr, inputs: Sequence[State], where: tuple[int, ...]) -> list[State]:
    def step(eqn: JaxprEqn, operands: list[State]) -> list[State]:
        # Equations tell the calls of a layer apart: a sum of two of them is a mix.
        return _step(eqn, operands, (*where, id(eqn)))

    return flow.evaluated(closed, inputs, step, lambda _: _CONSTANT)


def _step(eqn: JaxprEqn, operands: list[State], where: tuple[int, ...]) -> list[State]:
    def run(body: ClosedJaxpr, inputs: Sequence[State], _: object = None) -> list[State]:
        return _walk(body, inputs, where)

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
    if name in PRODUCTS:
        return [_product(operands, where)] * len(eqn.outvars)
    if name in _LOOK_UPS:
        table, *index = operands
        data = any(not isinstance(state, Own) for state in index)
        if isinstance(table, Own) and table.weights and data:
            return [_product([table, Given.INPUT], where)] * len(eqn.outvars)
        operands = [table]
    elif name == "select_n":
        # What chooses is not in the result.
        operands = operands[1:]
    return [_joined(name, operands)] * len(eqn.outvars)


def _product(operands: Sequence[State], where: tuple[int, ...]) -> State:
    """Return the state of a product: the output of a layer where one operand is its kernel."""
    kernels = [state for state in operands if isinstance(state, Own) and state.layers]
    if len(kernels) == 1 and any(not isinstance(state, Own) for state in operands):
        return Made(frozenset((layer, where) for layer in kernels[0].layers))
    return _joined("product", operands)


def _joined(name: str, operands: Sequence[State]) -> State:
    """Return the state of a result, from those of its operands."""
    calls_made = {state.calls for state in operands if isinstance(state, Made)}
    constants = [state for state in operands if isinstance(state, Own)]
    layers = frozenset[str]().union(*(state.layers for state in constants))
    weights = any(state.weights for state in constants)
    if not calls_made:
        if len(constants) == len(operands):
            return Own(layers, weights)
        return _MIXED if weights else Given.INPUT
    if name in _JOINING:
        return Made(frozenset[Use]().union(*calls_made))
    if len(calls_made) > 1:
        return _MIXED
    (calls,) = calls_made
    of_the_layer = bool(layers) and layers <= {layer for layer, _ in calls}  # a gain of its own
    return _MIXED if weights and name not in _ADDING and not of_the_layer else Made(calls)


def _either(states: Sequence[State]) -> State:
    """Return the state of a value that is one of several."""
    if len(set(states)) == 1:
        return states[0]
    if all(isinstance(state, Own) for state in states):
        return _joined("", states)
    calls_made = [state.calls for state in states if isinstance(state, Made)]
    weights = any(isinstance(state, Own) and state.weights for state in states)
    if not all(calls_made) or weights:
        return _MIXED
    return Made(frozenset[Use]().union(*calls_made)) if calls_made else Given.INPUT
