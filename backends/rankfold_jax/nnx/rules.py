"""Reading, building and refilling of NNX layers that a layer rule of a plugin reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Op, blank, with_weight
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.layer_rules import carried_out, read_by, rule_for
from rankfold_jax.layouts import ruled
from rankfold_jax.layouts.stacks import StackedAxes
from rankfold_jax.nnx import layers
from rankfold_jax.nnx.layer_classes import KINDS, kernel_name
from rankfold_jax.nnx.low_rank_sequential import chained
from rankfold_jax.nnx.module_tree import variables

_NAME = "nnx"


def rule_of(module: nnx.Module) -> LayerRule | None:
    """Return the rule that reads a module; the stock layers need none."""
    return None if type(module) in KINDS else rule_for(_NAME, type(module))


def read(rule: LayerRule, module: nnx.Module) -> Op:
    """Return the layer as its rule reads it; blank where it has only shapes.

    Raises:
        Refused: the rule declines or fails.
    """
    params = _params(module)
    if not any(isinstance(v.get_raw_value(), jax.ShapeDtypeStruct) for v in params.values()):
        return read_by(rule, module)
    # A rule may compute with the arrays, which it cannot do with shapes.
    zeros = {name: layers.numbers(variable) for name, variable in params.items()}
    op = read_by(rule, _with(module, zeros))
    return with_weight(op, blank(*op.weight.shape))


def layer_of(rule: LayerRule, module: nnx.Module) -> layers.NNXLayer:
    """Return the layer as its parameters lie in it.

    Raises:
        Refused: what the rule reads is not the parameters laid out otherwise.
    """
    params = _params(module)
    numbers = {name: layers.numbers(variable) for name, variable in params.items()}

    def other(changed: Mapping[str, Array]) -> Op:
        # The rule reads a whole layer; so the layer is copied with other numbers in it.
        return read_by(rule, _with(module, changed))

    names = ruled.layout(read(rule, module), numbers, other)
    if names is None:
        raise Refused(ruled.NO_LAYOUT)
    kernel, bias = names

    def laid_out(weight: Array, added: Array | None) -> Op:
        changed = {**numbers, kernel: weight}
        return other(changed if bias is None or added is None else {**changed, bias: added})

    shape = () if bias is None else numbers[bias].shape
    form = ruled.RuledForm(laid_out, numbers[kernel].shape, shape)
    return layers.NNXLayer(
        form, StackedAxes(), StackedAxes(), params[kernel], params[bias] if bias else None
    )


def refilled(rule: LayerRule, module: nnx.Module, kernel: Array, bias: Array | None) -> nnx.Module:
    """Return a copy of the layer with other numbers in the parameters that its rule lays out."""
    layer = layer_of(rule, module)
    names = {id(variable): name for name, variable in _params(module).items()}
    changed = {names[id(layer.kernel)]: kernel}
    if layer.bias is not None and bias is not None:
        changed[names[id(layer.bias)]] = bias
    dtypes = {name: variable.get_raw_value().dtype for name, variable in _params(module).items()}
    return _with(module, {name: jnp.asarray(v, dtypes[name]) for name, v in changed.items()})


def build(rule: LayerRule, module: nnx.Module, chain: Chain) -> nnx.Module:
    """Build a chain by the rule, or as stock layers in the dtype of the layer.

    Raises:
        Refused: the rule declines or fails, or Flax has no layer for an op.
    """
    if rule.build is not None:
        built = carried_out(rule.build, chain, module)
        if not isinstance(built, nnx.Module):
            raise Refused(f"the layer rule {rule.build!r} gave {type(built).__name__}, no module")
        return built
    stages = []
    for stage in ruled.stages(chain):
        layer: Any = layers.stock_layer(stage, module)
        numbers = {kernel_name(layer): stage.kernel[0]}
        if stage.bias is not None:
            numbers["bias"] = stage.bias[0]
        for name, values in numbers.items():
            setattr(layer, name, nnx.Param(jnp.asarray(values, dtype_of(module))))
        stages.append(layer)
    return chained(stages, module)


def runner(module: nnx.Module, op: Op) -> Callable[[Array], Array]:
    """Return the replacement of a layer as a function of its input, at the precision set."""
    double: Any = layers.in_double(module)

    def call(x: Array) -> Array:
        return np.asarray(double(jnp.asarray(x)))

    return partial(ruled.run, op, call)


def dtype_of(module: nnx.Module) -> Any:
    """Return the dtype of the largest parameter of a layer.

    Raises:
        Refused: it has none of floating-point numbers.
    """
    return ruled.dtype_of(variable.get_raw_value() for variable in _params(module).values())


def _params(module: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    return {
        name: variable
        for name, variable in variables(module).items()
        if isinstance(variable, nnx.Param)
        and jnp.issubdtype(getattr(variable.get_raw_value(), "dtype", np.int32), jnp.floating)
    }


def _with(module: nnx.Module, numbers: Mapping[str, Any]) -> nnx.Module:
    """Return a copy of a module with other numbers in its own parameters."""
    # Variables of the same class and metadata, so that sharding and hooks stay.
    copied: Any = nnx.clone(module)
    for name, values in numbers.items():
        variable = getattr(module, name)
        metadata = dict(variable.get_metadata())
        setattr(copied, name, type(variable).from_metadata(values, metadata))
    return copied  # type: ignore[no-any-return]  # Flax leaves it Any
