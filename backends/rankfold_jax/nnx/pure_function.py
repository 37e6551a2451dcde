"""NNX models as pure functions of their arrays, in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.stacks import ObservedAxes
from rankfold_jax.nnx import rules
from rankfold_jax.nnx.layers import NNXLayer, layer_of
from rankfold_jax.nnx.module_tree import modules


def flow(
    model: nnx.Module, paths: Iterable[str] = (), seen: Mapping[str, ObservedAxes] | None = None
) -> PureModel:
    """Return a copy of the model in eval mode, as a pure function.

    Args:
        model: the model.
        paths: of the layers that are to be found among its arrays.
        seen: what a trace showed of the axes of their kernels.
    """
    # `eval` sets attributes on every module; those of the model stay.
    copy = nnx.clone(model)
    copy.eval()  # type: ignore[no-untyped-call]  # Flax leaves it untyped
    inside = modules(copy)
    layers = {
        path: layer_in(inside[path], (seen or {}).get(path, ObservedAxes())) for path in paths
    }
    graphdef, state = nnx.split(copy)
    leaves: dict[int, int] = {}
    values: list[Any] = []
    params: list[int] = []
    for _, variable in nnx.to_flat_state(state):
        # By identity: layers hold the Variables that the state is made of. A Variable of another
        # kind may have several leaves or none.
        leaves[id(variable)] = len(values)
        values += jax.tree.leaves(variable)
        if isinstance(variable, nnx.Param):
            params += range(leaves[id(variable)], len(values))
    tree = jax.tree.structure(state)
    parameters = {
        path: parameter_of(layer, leaves[id(layer.kernel)], leaves.get(id(layer.bias), 0))
        for path, layer in layers.items()
    }

    def function(values: Sequence[Any], inputs: Inputs, arrays: Sequence[Any]) -> Any:
        # Merged anew at each call: what the model changes in itself (running statistics, caches)
        # ends with the merged copy.
        return inputs.output(nnx.merge(graphdef, jax.tree.unflatten(tree, values)), arrays)

    return PureModel(function, values, parameters, params)


def with_values(model: nnx.Module, values: Sequence[Any]) -> nnx.Module:
    """Return a copy of a model with other arrays, in the order of `PureModel.values`."""
    copy = nnx.clone(model)
    nnx.update(copy, jax.tree.unflatten(jax.tree.structure(nnx.state(copy)), list(values)))
    return copy


def layer_in(module: nnx.Module, seen: ObservedAxes) -> NNXLayer:
    """Return a layer, a stock one or one that a rule reads, as its parameters lie in it.

    Raises:
        Refused: what the layer computes is not known from its parameters alone.
    """
    rule = rules.rule_of(module)
    return layer_of(module, seen) if rule is None else rules.layer_of(rule, module)


def parameter_of(layer: NNXLayer, kernel: int, bias: int) -> ParameterIndex:
    """Return the index of a layer's numbers among the arrays of a model.

    Args:
        layer: the layer.
        kernel: which of the model's arrays is its kernel.
        bias: which of them is its bias, if it has one.
    """
    parameter = ParameterIndex(
        layer.form, kernel, jnp.shape(layer.kernel.get_raw_value()), layer.stack
    )
    if layer.bias is None:
        return parameter
    shape = jnp.shape(layer.bias.get_raw_value())
    return replace(parameter, bias=bias, bias_shape=shape, bias_stack=layer.bias_stack)
