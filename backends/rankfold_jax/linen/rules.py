"""Reading, building and refilling of Linen layers that a layer rule of a plugin reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Op, blank, with_weight
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.layer_rules import carried_out, read_by, rule_for
from rankfold_jax.layouts import ruled
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.sharding import to_array, wide
from rankfold_jax.layouts.stacks import StackedAxes
from rankfold_jax.linen.layers import KINDS, StageSpec, in_double, make, raw, unboxed

_NAME = "linen"


def rule_of(module: nn.Module, function: Any) -> LayerRule | None:
    """Return the rule that reads a module, of which a method is called; none for stock layers.

    Args:
        module: called. Under jit, remat and the like it is of its own class within.
        function: that the method was written as.
    """
    cls: Any = type(module)
    # Only the call: `setup` and helper methods of the layer are calls of methods, too.
    if cls in KINDS or function is not raw(cls.__call__):
        return None
    return rule_for(_NAME, cls)


@dataclass
class Calls:
    """Calls of a layer that a rule reads.

    Attributes:
        shapes: of its input.
        refusal: why the layer is left alone; "" where it is not.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    refusal: str = ""

    def note(self, module: nn.Module, args: Any, kwargs: Any, stored: Mapping[str, Any]) -> None:
        """Note a call of the layer.

        Args:
            module: bound as it is called.
            args: of the call.
            kwargs: the same.
            stored: the shapes of its parameters in the model.
        """
        arguments = (*args, *kwargs.values())
        if len(arguments) != 1:
            self.refusal = "it is called with more than its input"
        # Under vmap or scan the layer sees one slice of what the model stores.
        elif shapes_in(module.variables.get("params", {})) != stored:
            self.refusal = "a rule reads one layer; this is a stack of them"
        else:
            self.shapes.append(np.shape(arguments[0]))


def shapes_in(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shapes of the parameters of a layer, boxed or not."""
    values = {name: unboxed(value) for name, value in node.items()}
    return jax.tree.map(np.shape, values)  # type: ignore[no-any-return]  # a tree of the same kind


class RuledLayer:
    """Layer that a rule reads, with its parameters.

    Args:
        rule: of the layer.
        module: the layer, unbound.
        node: its parameters, boxed or not, by name.
    """

    def __init__(self, rule: LayerRule, module: nn.Module, node: Mapping[str, Any]) -> None:
        self._rule = rule
        self._module = module
        self._node = dict(node)

    def op(self) -> Op:
        """Return the layer as an op; blank where it has only shapes.

        Raises:
            Refused: the rule declines or fails.
        """
        values = {name: unboxed(value) for name, value in self._node.items()}
        leaves = jax.tree.leaves(values)
        if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            return self._read(values)
        # A rule may compute with the arrays, which it cannot do with shapes.
        op = self._read(jax.tree.map(to_array, values))
        return with_weight(op, blank(*op.weight.shape))

    def build(self, chain: Chain) -> tuple[tuple[StageSpec, ...], dict[str, Any]]:
        """Build a chain by the rule, or as stock layers, with the parameters of these.

        Raises:
            Refused: the rule declines or fails, or Flax has no layer for an op.
        """
        if self._rule.build is not None:
            built = carried_out(self._rule.build, chain, self.bound())
            # Parameters come with a bound module; an unbound one has none to put into the model.
            if not isinstance(built, nn.Module) or built.scope is None:
                raise Refused(f"the layer rule {self._rule.build!r} gave no bound module")
            module, variables = built.unbind()
            params = dict(variables.get("params", {}))
            spec = StageSpec(None, use_bias=False, ruled=True, module=module)
            return (spec,), {"lr0": params}
        specs, named = [], {}
        for index, stage in enumerate(ruled.stages(chain)):
            specs.append(StageSpec(stage.form, stage.bias is not None, ruled=True))
            name = "embedding" if type(stage.form).__name__ == "EmbedForm" else "kernel"
            params = {name: jnp.asarray(stage.kernel[0], self.dtype)}
            if stage.bias is not None:
                params["bias"] = jnp.asarray(stage.bias[0], self.dtype)
            named[f"lr{index}"] = params
        return tuple(specs), named

    def run(self, specs: Sequence[StageSpec], params: Mapping[str, Any], x: Array) -> Array:
        """Return the output of what stands in the layer's place, in float64."""
        layers = [in_double(make(spec, self._module, None)) for spec in specs]
        double = jax.tree.map(wide, {name: params[f"lr{i}"] for i, name in enumerate(params)})

        def call(x: Array) -> Array:
            y: Any = jnp.asarray(x)
            for layer, params in zip(layers, double.values(), strict=True):
                y = layer.apply({"params": params}, y)
            return np.asarray(y)

        return ruled.run(self.op(), call, x)

    def parameter(self, places: Mapping[str, int]) -> ParameterIndex:
        """Return the index of the layer's numbers among the arrays of a model.

        Args:
            places: of its parameters, by name.

        Raises:
            Refused: what the rule reads is not the parameters laid out otherwise.
        """
        kernel, bias = self._names()
        numbers = self._numbers()
        form = ruled.RuledForm(
            partial(self._laid_out, kernel, bias),
            numbers[kernel].shape,
            () if bias is None else numbers[bias].shape,
        )
        stack = StackedAxes()  # none: a rule reads one layer
        parameter = ParameterIndex(form, places[kernel], form.kernel_shape, stack)
        if bias is None:
            return parameter
        return replace(parameter, bias=places[bias], bias_shape=form.bias_shape, bias_stack=stack)

    def refilled(self, op: Op) -> dict[str, Any]:
        """Return the layer's parameters with the numbers of an op in them, boxed as they were.

        Raises:
            Refused: they cannot be written in.
        """
        names = self._names()
        # The places among a model's arrays do not matter here, only the layouts.
        filled = self.parameter(dict.fromkeys(self._node, 0)).filled(op)
        params = dict(self._node)
        for name, values in zip(names, filled, strict=True):
            if name is not None:
                like = self._node[name]
                array = jnp.asarray(values, unboxed(like).dtype)
                # The box may be of any class here: the rule reads what is inside.
                boxed = isinstance(like, nn.meta.AxisMetadata)
                params[name] = like.replace_boxed(array) if boxed else array
        return params

    def bound(self) -> nn.Module:
        """Return the layer with its parameters, as a rule is given it."""
        # Unboxed, as the layer sees its parameters when it is called.
        return self._module.bind({"params": {n: unboxed(v) for n, v in self._node.items()}})

    @property
    def has_builder(self) -> bool:
        """Whether its rule builds what takes its place."""
        return self._rule.build is not None

    @property
    def size(self) -> int:
        """Number of its parameters."""
        return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(self._node))

    @property
    def dtype(self) -> Any:
        """Dtype of the largest parameter of the layer.

        Raises:
            Refused: it has none of floating-point numbers.
        """
        return ruled.dtype_of(unboxed(value) for value in self._node.values())

    def _read(self, params: Mapping[str, Any]) -> Op:
        return read_by(self._rule, self._module.bind({"params": dict(params)}))

    def _numbers(self) -> dict[str, Array]:
        return {
            name: to_array(unboxed(value))
            for name, value in self._node.items()
            if not isinstance(value, Mapping)
        }

    def _names(self) -> tuple[str, str | None]:
        numbers = self._numbers()
        names = ruled.layout(self.op(), numbers, lambda other: self._read({**self._node, **other}))
        if names is None:
            raise Refused(ruled.NO_LAYOUT)
        return names

    def _laid_out(self, kernel: str, bias: str | None, weight: Array, added: Array | None) -> Op:
        changed: dict[str, Any] = {**self._node, kernel: weight}
        if bias is not None and added is not None:
            changed[bias] = added
        return self._read(changed)
