"""`NNXAdapter`, through which the core reads, runs and changes models of Flax NNX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from rankfold.adapters.base import Trace
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Op, blank, params, with_weight
from rankfold.ops.reference import composed
from rankfold_jax.adapter_base import FlaxAdapter
from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.jaxpr import dataflow as jaxprs
from rankfold_jax.layouts.chain_reader import FOREIGN, checked
from rankfold_jax.layouts.stacks import ObservedAxes
from rankfold_jax.layouts.stock_layers import RULED, not_interpolated
from rankfold_jax.nnx import layers, rules, tracing
from rankfold_jax.nnx import low_rank_sequential as compressed
from rankfold_jax.nnx import stale_layers as stale
from rankfold_jax.nnx.interpolative import Interpolative
from rankfold_jax.nnx.layer_classes import KINDS, kernel_name
from rankfold_jax.nnx.layers import NNXLayer
from rankfold_jax.nnx.module_tree import exchanged, modules, nodes, paths
from rankfold_jax.nnx.pure_function import flow, layer_in, parameter_of, with_values
from rankfold_jax.nnx.refusals import ModuleUsage, check_class, check_state
from rankfold_jax.state_io import load_arrays, save_arrays

T = TypeVar("T")


class NNXAdapter(FlaxAdapter[nnx.Module]):
    """Reads, builds and replaces layers of an `nnx.Module`.

    An instance serves one call of plan, apply, compress or load, during which the model is
    unchanged until it is replaced.
    """

    def __init__(self) -> None:
        self._modules = _by_identity(modules)
        self._usages = _by_identity(ModuleUsage)
        self._paths = _by_identity(_paths_by_module)
        self._seen: dict[str, ObservedAxes] = {}
        self._inputs: Inputs | None = None
        # By id, with the module beside it so that the id cannot be used again.
        self._built: dict[int, tuple[nnx.Module, Callable[[Array], Array]]] = {}

    def parts(self, model: nnx.Module) -> Iterable[object]:
        """Return the modules and Variables."""
        return nodes(model)

    def layers(self, model: nnx.Module) -> Mapping[str, str]:
        """Return the classes of stock layers and of other modules with a matrix, by path."""
        holder = tracing.array_holders(model)
        return {path: type(module).__name__ for path, module in holder.items()}

    def size(self, model: nnx.Module) -> int:
        """Return the number of parameters (`nnx.Param`), shared ones counted once."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    def why_not_interpolated(self, model: nnx.Module, path: str) -> str:
        """Return why a layer takes no interpolative stages."""
        module = self._modules(model)[path]
        rule = rules.rule_of(module)
        if rule is not None:
            return "" if rule.build is None else RULED
        try:
            layer = layers.layer_of(module, self._seen.get(path, ObservedAxes()))
        except Refused as refused:
            return refused.reason
        return not_interpolated(module, layer.form, layer.stack)

    def parameters(self, model: nnx.Module, path: str, op: Op) -> int:
        """Return the number of parameters of a layer, those folded into its weight included."""
        module = self._modules(model)[path]
        return params(op) if rules.rule_of(module) is None else self.size(module)

    def aliases(self, model: nnx.Module, path: str) -> tuple[str, ...]:
        """Return the further paths of a module that stands in several places."""
        module = self._modules(model)[path]
        return tuple(other for other in self._paths(model)[id(module)] if other != path)

    def read(self, model: nnx.Module, path: str) -> Op:
        """Return the layer at a path as an op; refuse it for what it is or what surrounds it."""
        module = self._modules(model)[path]
        rule = rules.rule_of(module)
        if rule is not None:
            self._usages(model).check(path, module)
            return rules.read(rule, module)
        check_class(module)
        check_state(module)
        self._usages(model).check(path, module)
        layer = layers.layer_of(module, self._seen.get(path, ObservedAxes()))
        op = layer.form.op(*layer.arrays())
        if isinstance(layer.kernel.get_raw_value(), jax.ShapeDtypeStruct):
            # Zeros have stood in for numbers that are not there.
            return with_weight(op, blank(*op.weight.shape))
        return op

    def trace(self, model: nnx.Module, inputs: Any) -> Trace:
        """Trace one abstract forward pass; nothing is computed."""
        self._inputs = Inputs(inputs)
        trace, self._seen = tracing.trace(model, tracing.array_holders(model), inputs)
        return trace

    def build(self, model: nnx.Module, path: str, chain: Chain) -> nnx.Module:
        """Build a `LowRankSequential` of stock layers, or what a layer rule builds."""
        module = self._modules(model)[path]
        rule = rules.rule_of(module)
        if rule is not None:
            built = rules.build(rule, module, chain)
            self._built[id(built)] = (built, partial(_run_ruled, built, self.read(model, path)))
            return built
        layer = layers.layer_of(module, self._seen.get(path, ObservedAxes()))
        built = layers.build(layer.form.stages(chain, layer.stack.count), module, layer)
        self._built[id(built)] = (built, partial(_run, built, layer))
        return built

    def chain(self, model: nnx.Module, small: nnx.Module, path: str) -> Chain:
        """Return the chain that stands in the place of a layer in a compressed model, as it is now.

        Args:
            model: the model that was compressed (it still has the layer itself at `path`).
            small: the compressed model, fine-tuned perhaps.
            path: of a layer that was replaced in it.

        Raises:
            Refused: what stands there is not a chain that this adapter built.
        """
        op = self.read(model, path)
        layer = self._layer_at(model, path)
        # Every path of the compressed model, as a shared chain may be listed under another one.
        holder = dict(paths(small)).get(path)
        if not isinstance(holder, compressed.LowRankSequential):
            raise Refused(f"a {type(holder).__name__} stands in its place, not a chain")
        stages: list[Any] = list(holder.layers)
        for stage in stages:
            # A fine-tuned or edited model may hold anything, down to the stages.
            if not isinstance(stage, nnx.Module):
                raise Refused(f"{FOREIGN}it holds a {type(stage).__name__}")
            if not isinstance(stage, Interpolative):
                check_class(stage)
            check_state(stage)
        return checked(op, tuple(layers.stage_op(op, stage, layer) for stage in stages))

    def run(self, module: nnx.Module, x: Array) -> Array:
        """Return the output of a built module, computed in float64."""
        with jax.enable_x64(True):
            return self._built[id(module)][1](x)

    def replace(
        self, model: nnx.Module, modules: Mapping[str, nnx.Module], *, inplace: bool
    ) -> nnx.Module:
        """Swap modules by identity, so that shared ones stay shared.

        Raises:
            RankfoldError: something holds a layer where no other can take its place.
        """
        target, left = self._exchanged(model, modules, inplace=inplace)
        for path, reason in left.items():
            raise RankfoldError(f"layer {path!r} cannot be replaced: {reason}")
        return target

    def replaced(
        self, model: nnx.Module, modules: Mapping[str, nnx.Module], *, inplace: bool
    ) -> tuple[nnx.Module, Mapping[str, str]]:
        """Replace layers and say which must be left; a model to be changed is then as before.

        After a trace the result is compared with the original, on the same inputs.
        """
        if "" in modules or not modules:
            return self._exchanged(model, modules, inplace=inplace)
        by_path = self._modules(model)
        old = {path: by_path[path] for path in modules}
        # Before the layers are out of a model that is to be changed itself.
        reference = self._reference(model, modules, self._inputs)
        target, left = self._exchanged(model, modules, inplace=inplace)
        if left or reference is None:
            return target, left

        def small(some: Sequence[str]) -> nnx.Module:
            if len(some) == len(modules):
                return target
            if inplace:  # a search for the layers that matter is only made of a model that differs
                _restored(target, modules, old)
            chosen = {path: modules[path] for path in some}
            return self._exchanged(model, chosen, inplace=False)[0]

        try:
            left = self._left(reference, model, list(modules), small)
        except BaseException:
            if inplace:
                _restored(target, modules, old)
            raise
        if left and inplace:
            _restored(target, modules, old)
        return target, left

    def _exchanged(
        self, model: nnx.Module, modules: Mapping[str, nnx.Module], *, inplace: bool
    ) -> tuple[nnx.Module, Mapping[str, str]]:
        """Replace layers and say which something still holds; such a model is then as before."""
        if "" in modules:
            # Nothing can take the place of the object that the caller holds.
            if inplace:
                raise RankfoldError("a model that is a single layer cannot be replaced in place")
            return modules[""], {}
        target = model if inplace else nnx.clone(model)
        by_path = dict(paths(target))
        old = {path: by_path[path] for path in modules}
        try:
            exchanged(target, {id(old[path]): module for path, module in modules.items()}, {})
            # Closures and static attributes are not exchanged: what they hold is found afterwards,
            # and the exchange is undone by the same function.
            left = stale.kept(target, old)
            if not inplace:
                stale.check_apart(target, model)
        except BaseException:
            _restored(target, modules, old)
            raise
        if left:
            _restored(target, modules, old)
        return target, left

    def save_weights(self, model: nnx.Module, file: Path) -> None:
        """Write every array of the model's state, shared ones once."""
        save_arrays(_arrays(model), file)

    def load_weights(self, model: nnx.Module, file: Path, *more: Path) -> nnx.Module:
        """Fill the model's state after checking names, shapes and dtypes.

        Its random generators stay as they are where the files hold none: the state of a training
        is often that of its parameters and statistics alone.
        """
        state = nnx.state(model)
        generators = _arrays(model, nnx.RngState)
        if any(isinstance(value, jax.ShapeDtypeStruct) for value in generators.values()):
            generators = {}  # nothing that could stay
        # The leaves of the state come in the order of `_arrays`, by which the tree is filled again.
        loaded = load_arrays((file, *more), _arrays(model), generators)
        nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), list(loaded.values())))
        return model

    def refilled(self, model: nnx.Module, path: str, op: Op) -> nnx.Module:
        """Return a copy of the layer with the values of an op."""
        module, rule = self._modules(model)[path], rules.rule_of(self._modules(model)[path])
        layer = self._layer_at(model, path)
        kernel, bias = parameter_of(layer, 0, 1).filled(op)
        if rule is not None:
            return rules.refilled(rule, module, kernel, bias)
        return layers.refilled(module, layer, kernel, bias)

    def expanded(self, model: nnx.Module, small: nnx.Module, paths: Sequence[str]) -> nnx.Module:
        """Return a copy of the compressed model with a copy of the layer in place of each chain."""
        return self.replace(small, self._dense(model, small, paths), inplace=False)

    def expand(self, model: nnx.Module, small: nnx.Module, paths: Sequence[str]) -> None:
        """Put a copy of the layer in the place of each chain of the compressed model."""
        self.replace(small, self._dense(model, small, paths), inplace=True)

    def _dense(
        self, model: nnx.Module, small: nnx.Module, paths: Sequence[str]
    ) -> dict[str, nnx.Module]:
        return {
            path: self.refilled(
                model, path, composed(self.read(model, path), self.chain(model, small, path))
            )
            for path in paths
        }

    def stages(self, model: nnx.Module) -> Mapping[str, Sequence[str]]:
        """Return the stock layers in each chain, by path."""
        return {
            path: [
                f"{path}.layers.{index}".lstrip(".")
                for index, stage in enumerate(list(chain.layers))
                if isinstance(stage, KINDS)
            ]
            for path, chain in modules(model).items()
            if isinstance(chain, compressed.LowRankSequential)
        }

    def _layer_at(self, model: nnx.Module, path: str) -> NNXLayer:
        return layer_in(self._modules(model)[path], self._seen.get(path, ObservedAxes()))

    def _is_laid_out(self, model: nnx.Module, path: str) -> bool:
        try:
            self._layer_at(model, path)
        except Refused:
            return False
        return True

    def _flow(self, model: nnx.Module, paths: Iterable[str]) -> PureModel:
        return flow(model, paths, self._seen)

    def _with_values(self, model: nnx.Module, values: Sequence[Any]) -> nnx.Module:
        return with_values(model, values)

    def _dtype(self, model: nnx.Module, path: str) -> Any:
        module = self._modules(model)[path]
        if rules.rule_of(module) is not None:
            return rules.dtype_of(module)
        return getattr(module, kernel_name(module)).get_raw_value().dtype


def _run(built: compressed.LowRankSequential, layer: NNXLayer, x: Array) -> Array:
    return layer.form.run(layers.runner(built, layer), x, layer.stack.count)


def _run_ruled(built: nnx.Module, op: Op, x: Array) -> Array:
    return rules.runner(built, op)(x)


def _arrays(model: nnx.Module, kind: Any = ...) -> dict[str, Any]:
    """Return the arrays of the model's state by name, in the order of its leaves.

    Args:
        model: of which.
        kind: the class of the Variables; ... for all.
    """
    named: dict[str, Any] = {}
    for path, value in nnx.to_flat_state(nnx.state(model, kind)):
        for rest, leaf in jaxprs.leaves_of(value):
            # The path of a leaf within its Variable begins with "value"; names in files do not have
            # it.
            inside = rest.removeprefix("value").removeprefix(".")
            named[".".join(part for part in (*map(str, path), inside) if part)] = leaf
    return named


def _restored(
    model: nnx.Module, new: Mapping[str, nnx.Module], old: Mapping[str, nnx.Module]
) -> None:
    """Put layers back in the place of what replaced them, as far as it did."""
    exchanged(model, {id(module): old[path] for path, module in new.items()}, {})


def _by_identity(function: Callable[[nnx.Module], T]) -> Callable[[nnx.Module], T]:
    """Return a function that remembers its value by model; models need not be hashable."""
    known: dict[int, T] = {}

    def remembered(model: nnx.Module) -> T:
        if id(model) not in known:
            known[id(model)] = function(model)
        return known[id(model)]

    return remembered


def _paths_by_module(model: nnx.Module) -> Mapping[int, list[str]]:
    """Return all paths of each module, by its identity."""
    holder: dict[int, list[str]] = {}
    for path, module in paths(model):
        holder.setdefault(id(module), []).append(path)
    return holder
