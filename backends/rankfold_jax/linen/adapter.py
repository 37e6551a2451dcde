"""`LinenAdapter`, through which the core reads, runs and changes bound models of Flax Linen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import freeze, unfreeze

from rankfold.adapters.base import Trace
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Op, blank, with_weight
from rankfold.ops import params as op_params
from rankfold.ops.reference import composed
from rankfold_jax.adapter_base import FlaxAdapter
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.layouts.chain_reader import FOREIGN, checked, stage_op
from rankfold_jax.layouts.dense import EmbedForm
from rankfold_jax.layouts.extents import seen_axes
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.stacks import StackedAxes, find_stacks
from rankfold_jax.layouts.stock_layers import RULED, not_interpolated
from rankfold_jax.linen.chain_run import run_chain
from rankfold_jax.linen.interception import Path, compressed, specs_of
from rankfold_jax.linen.layers import (
    StageSpec,
    array_name,
    geometry,
    unboxed,
)
from rankfold_jax.linen.params import (
    Built,
    Refilled,
    boxed,
    check_array,
    names_alone,
    nodes,
    numbers_of,
    params_of,
    put_params,
    refilled_param,
)
from rankfold_jax.linen.pure_function import check_bound, check_replaced, flow, with_values
from rankfold_jax.linen.rules import RuledLayer
from rankfold_jax.linen.tracing import Recorded, Recording, is_matrix, leaves
from rankfold_jax.state_io import load_arrays, save_arrays


class LinenAdapter(FlaxAdapter[nn.Module]):
    """Reads, builds and replaces layers of a bound `nn.Module`.

    An instance serves one call of plan, apply, compress or load.
    """

    def __init__(self) -> None:
        self._recording: Recording | None = None
        self._paths: dict[str, Path] = {}

    def parts(self, model: nn.Module) -> Iterable[object]:
        """Return the model alone: it is immutable."""
        return (model,)

    def layers(self, model: nn.Module) -> Mapping[str, str]:
        """Return classes by path of modules with a matrix: those called, in order, then others."""
        recording = self._recorded(model)
        all_nodes = nodes(model)
        # A layer whose parameters lie elsewhere in the model (shared or transformed ones) has none
        # at its path to replace.
        called = [path for path in recording.layers if path in all_nodes]
        others = [
            path
            for path, node in all_nodes.items()
            if path not in recording.layers
            # What looks like a matrix may be a stack of vectors: for a module that was called, the
            # call tells which it is.
            and (path in recording.matrices or path not in recording.classes)
            and any(is_matrix(value) for value in node.values())
        ]
        return {
            ".".join(path): recording.classes.get(path, "module") for path in (*called, *others)
        }

    def size(self, model: nn.Module) -> int:
        """Return the number of parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params_of(model)))

    def parameters(self, model: nn.Module, path: str, op: Op) -> int:
        """Return the number of parameters of a layer, those folded into its weight included."""
        ruled = self._ruled(model, path)
        return op_params(op) if ruled is None else ruled.size

    def why_not_interpolated(self, model: nn.Module, path: str) -> str:
        """Return why a layer takes no interpolative stages."""
        ruled = self._ruled(model, path)
        if ruled is not None:
            return RULED if ruled.has_builder else ""
        try:
            layer, _, stacks = self._layer_at(model, path)
        except Refused as refused:
            return refused.reason
        assert not isinstance(layer.form, Refused)
        return not_interpolated(layer.module, layer.form, stacks[0])

    def aliases(self, model: nn.Module, path: str) -> tuple[str, ...]:
        """Return no further paths: a shared module has one path."""
        return ()

    def trace(self, model: nn.Module, inputs: Any) -> Trace:
        """Trace one abstract forward pass; nothing is computed."""
        check_bound(model)
        self._recording = Recording(model, inputs)
        # Names may have dots, so that a path is looked up and not split.
        known = (*self._recording.classes, *nodes(model))
        self._paths = {".".join(path): path for path in known}
        return self._recording.trace

    def read(self, model: nn.Module, path: str) -> Op:
        """Return the layer at a path as an op; refuse it for what it is or what is done with it."""
        ruled = self._ruled(model, path)
        if ruled is not None:
            return ruled.op()
        layer, arrays, stack = self._layer_at(model, path)
        assert not isinstance(layer.form, Refused)
        kernel, *bias = (
            stack_of.to_front(numbers_of(array))
            for array, stack_of in zip(arrays, stack, strict=True)
        )
        op = layer.form.op(kernel, bias[0] if bias else None)
        if isinstance(unboxed(arrays[0]), jax.ShapeDtypeStruct):
            return with_weight(op, blank(*op.weight.shape))
        return op

    def build(self, model: nn.Module, path: str, chain: Chain) -> Built:
        """Build the chain as stock layers that are made within the layer replaced."""
        ruled = self._ruled(model, path)
        if ruled is not None:
            replaced = self._recorded(model).layers[self._paths[path]]
            return Built(*ruled.build(chain), replaced, [], ruled)
        layer, arrays, stacks = self._layer_at(model, path)
        assert not isinstance(layer.form, Refused)
        # Stages are described and not made: Linen makes layers within the call of their parent,
        # where interception does so by the specs.
        specs, params = [], {}
        stages = layer.form.stages(chain, stacks[0].count)
        for index, stage in enumerate(stages):
            ends = {"first": index == 0, "last": index == len(stages) - 1}
            # By roles the stages get names and shardings of the axes that they share with the
            # layer.
            before = (layer.form.roles, layer.form.bias_roles)
            after = (stage.form.roles, stage.form.bias_roles)
            named: dict[str, Any] = {}
            boxes: list[Any] = [None, None]
            name = "embedding" if type(stage.form).__name__ == "EmbedForm" else "kernel"
            for which, (key, numbers) in enumerate(((name, stage.kernel), ("bias", stage.bias))):
                if numbers is not None:
                    named[key], boxes[which] = boxed(
                        arrays[which], numbers, stacks[which], before[which], after[which], **ends
                    )
            specs.append(StageSpec(stage.form, stage.bias is not None, *boxes))
            params[f"lr{index}"] = named
        return Built(tuple(specs), params, layer, stacks)

    def chain(self, model: nn.Module, small: nn.Module, path: str) -> Chain:
        """Return the chain that stands in the place of a layer in a compressed model, as it is now.

        Args:
            model: the model that was compressed (it still has the layer itself at `path`).
            small: the compressed model, fine-tuned perhaps.
            path: of a layer that was replaced in it.

        Raises:
            Refused: what stands there is not a chain that this adapter built.
        """
        op = self.read(model, path)
        ruled = self._ruled(model, path)
        stacks = [StackedAxes()] if ruled is not None else self._layer_at(model, path)[2]
        check_bound(small)
        node_path = self._paths[path]
        specs = specs_of(small, node_path)
        if specs is None:
            raise Refused("no chain stands in its place")
        known = nodes(small)
        chain = []
        for index, spec in enumerate(specs):
            if spec.form is None:
                raise Refused(f"{FOREIGN}a layer rule built it")
            node = known.get((*node_path, f"lr{index}"), {})
            name = "embedding" if isinstance(spec.form, EmbedForm) else "kernel"
            # The layer itself is not in the compressed model; its stages are where the chain is
            # put.
            if node.keys() != {name, *(["bias"] if spec.use_bias else [])}:
                raise Refused(f"{FOREIGN}lr{index} holds {', '.join(node) or 'nothing'}")
            for key, value in node.items():
                check_array(key, value)
            chain.append(
                stage_op(
                    op,
                    spec.form,
                    (numbers_of(node[name]), stacks[0]),
                    (numbers_of(node["bias"]), stacks[-1]) if spec.use_bias else None,
                    shapes_only=isinstance(unboxed(node[name]), jax.ShapeDtypeStruct),
                )
            )
        return checked(op, tuple(chain))

    def run(self, module: Built, x: Array) -> Array:
        """Return the output of a chain, computed in float64."""
        return run_chain(module, x)

    def replace(
        self, model: nn.Module, modules: Mapping[str, Built | Refilled], *, inplace: bool
    ) -> nn.Module:
        """Return a bound module of a subclass, with the parameters of the chains.

        Where no layer is replaced by another, it is of the model's own class.
        """
        if inplace:
            raise RankfoldError(
                "Linen modules are immutable: take the compressed model that is returned"
            )
        if not modules:
            return model
        module, variables = model.unbind()
        table = tuple(
            (self._paths[path], built.specs, geometry(built.layer.module, built.layer.kind))
            for path, built in modules.items()
            if isinstance(built, Built)
        )
        small = compressed(module, table) if table else module
        params: Any = unfreeze(freeze(variables["params"]))  # a copy of its dicts
        for path, built in modules.items():
            put_params(params, self._paths[path], built)
        changed = {**variables, "params": params}
        # Before anything is handed out: a layer that is called in a way that no interceptor sees
        # would look for a kernel that is no longer there, or go on unreplaced.
        inputs = self._recorded(model).inputs
        check_replaced(small, changed, {path for path, *_ in table}, inputs)
        return small.bind(changed)

    def replaced(
        self, model: nn.Module, modules: Mapping[str, Built | Refilled], *, inplace: bool
    ) -> tuple[nn.Module, Mapping[str, str]]:
        """Replace layers and say which must be left, as the model then fails or differs."""
        reference = None
        if modules and not inplace and self._recording is not None:
            reference = self._reference(model, modules, self._recording.inputs)
        if reference is None:
            return self.replace(model, modules, inplace=inplace), {}
        last = model

        def small(paths: Sequence[str]) -> nn.Module:
            nonlocal last
            last = self.replace(model, {path: modules[path] for path in paths}, inplace=False)
            return last

        left = self._left(reference, model, list(modules), small)
        return last, left

    def save_weights(self, model: nn.Module, file: File) -> None:
        """Write every variable of every collection."""
        named = {".".join(path): unboxed(value) for path, value in leaves(model.variables)}
        save_arrays(named, file)

    def load_weights(self, model: nn.Module, file: File, *more: File) -> nn.Module:
        """Bind the model to the variables of a file, after checking names, shapes and dtypes."""
        module, variables = model.unbind()
        flat, tree = jax.tree.flatten(variables)
        names = [".".join(path) for path, _ in leaves(variables)]
        wanted = dict(zip(names, flat, strict=True))
        loaded = load_arrays((file, *more), wanted, aliases=names_alone(names))
        return module.bind(jax.tree.unflatten(tree, [loaded[name] for name in names]))

    def refilled(self, model: nn.Module, path: str, op: Op) -> Refilled:
        """Return the layer's own parameters, with the values of an op."""
        ruled = self._ruled(model, path)
        if ruled is not None:
            return Refilled(ruled.refilled(op))
        layer, arrays, stacks = self._layer_at(model, path)
        assert not isinstance(layer.form, Refused)
        kernel, bias = _parameter(layer, arrays, stacks, 0, 1).filled(op)
        params = {
            array_name(layer.kind): refilled_param(arrays[0], kernel, stacks[0], layer.form.roles)
        }
        if bias is not None:
            params["bias"] = refilled_param(arrays[1], bias, stacks[1], layer.form.bias_roles)
        return Refilled(params)

    def expanded(self, model: nn.Module, small: nn.Module, paths: Sequence[str]) -> nn.Module:
        """Bind the model's own class to the compressed variables, with dense kernels for chains."""
        module, _ = model.unbind()
        variables = small.variables
        params: Any = unfreeze(freeze(variables["params"]))  # a copy of its dicts
        for path in paths:
            op = composed(self.read(model, path), self.chain(model, small, path))
            node = params
            for name in self._paths[path]:
                node = node[name]
            # The stages of the chain, by the names that interception gives them.
            for name in [name for name in node if name.startswith("lr")]:
                del node[name]
            put_params(params, self._paths[path], self.refilled(model, path, op))
        return module.bind({**variables, "params": params})

    def _flow(self, model: nn.Module, paths: Iterable[str]) -> PureModel:
        """Return the model as a pure function, with the places of layers among its arrays."""
        pure = flow(model)
        # The parameters come first among the values of `flow`, in the order of their leaves.
        places = {node_path: index for index, (node_path, _) in enumerate(leaves(params_of(model)))}
        parameters = {}
        for path in paths:
            node_path, ruled = self._paths[path], self._ruled(model, path)
            if ruled is not None:
                parameters[path] = ruled.parameter(
                    {at[-1]: index for at, index in places.items() if at[:-1] == node_path}
                )
                continue
            layer, arrays, stacks = self._layer_at(model, path)
            kernel = places[(*node_path, array_name(layer.kind))]
            bias = places.get((*node_path, "bias"), 0)
            parameters[path] = _parameter(layer, arrays, stacks, kernel, bias)
        return replace(pure, parameters=parameters)

    def _ruled(self, model: nn.Module, path: str) -> RuledLayer | None:
        """Return the layer at a path if a layer rule reads it, else None."""
        layer = self._recorded(model).layers.get(self._paths[path])
        if layer is None or layer.rule is None:
            return None
        return RuledLayer(layer.rule, layer.module, nodes(model)[self._paths[path]])

    def _is_laid_out(self, model: nn.Module, path: str) -> bool:
        ruled = self._ruled(model, path)
        if ruled is None:
            return True
        try:
            ruled.parameter(dict.fromkeys(nodes(model)[self._paths[path]], 0))
        except Refused:
            return False
        return True

    def _with_values(self, model: nn.Module, values: Sequence[Any]) -> nn.Module:
        return with_values(model, values)

    def _dtype(self, model: nn.Module, path: str) -> Any:
        ruled = self._ruled(model, path)
        if ruled is not None:
            return ruled.dtype
        return unboxed(self._layer_at(model, path)[1][0]).dtype

    def _recorded(self, model: nn.Module) -> Recording:
        check_bound(model)
        if self._recording is None:
            raise RankfoldError(
                "a Linen model shows its layers only when it is called: pass inputs=, example "
                "inputs of one forward pass"
            )
        return self._recording

    def _layer_at(
        self, model: nn.Module, path: str
    ) -> tuple[Recorded, list[Any], list[StackedAxes]]:
        """Return a layer, its kernel and bias as they are stored, and their stacks."""
        recording = self._recorded(model)
        layer = recording.layers.get(self._paths[path])
        if layer is None:
            if self._paths[path] in recording.classes:
                raise Refused(f"no rule reads a {recording.classes[self._paths[path]]}")
            # It has a matrix of its own, but nothing shows what it computes with it.
            raise Refused("it is not called on the example inputs")
        if isinstance(layer.form, Refused):
            raise layer.form
        node = dict(nodes(model))[self._paths[path]]
        names = [array_name(layer.kind), *(["bias"] if layer.bias else [])]
        arrays = [node[name] for name in names]
        for name, value in zip(names, arrays, strict=True):
            check_array(name, value)
        shapes = [tuple(unboxed(value).shape) for value in arrays]
        bias = shapes[1] if layer.bias else None
        form = layer.form
        seen = seen_axes(path, recording.dataflow)
        stacks = find_stacks(shapes[0], form.kernel_shape, bias, form.bias_shape, seen)
        # Without a bias there is no second stack.
        return layer, arrays, list(stacks[: len(arrays)])


def _parameter(
    layer: Recorded, arrays: Sequence[Any], stacks: Sequence[StackedAxes], kernel: int, bias: int
) -> ParameterIndex:
    """Return the index of a layer's numbers: which arrays of the model its kernel and bias are."""
    assert not isinstance(layer.form, Refused)
    parameter = ParameterIndex(layer.form, kernel, tuple(unboxed(arrays[0]).shape), stacks[0])
    if not layer.bias:
        return parameter
    shape = tuple(unboxed(arrays[1]).shape)
    return replace(parameter, bias=bias, bias_shape=shape, bias_stack=stacks[1])
