"""`NNXAdapter`: what the core asks of Flax NNX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from rankfold.contracts import Trace
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Array, Chain, Op, blank, with_weight
from rankfold.reference import composed
from rankfold_jax import jaxprs
from rankfold_jax.chains import FOREIGN, checked
from rankfold_jax.data_aware import FlowDataAware
from rankfold_jax.flow import Flow
from rankfold_jax.nnx import layers, tracing
from rankfold_jax.nnx.flows import flow, slot_of
from rankfold_jax.nnx.graph import exchanged, modules, nodes, paths
from rankfold_jax.nnx.refusals import Surroundings, check_class, check_state
from rankfold_jax.sharding import epsilon
from rankfold_jax.stacks import Seen
from rankfold_jax.versions import thread_state
from rankfold_jax.weights import load_arrays, save_arrays

T = TypeVar("T")


class NNXAdapter(FlowDataAware[nnx.Module]):
    """Reads, builds and replaces layers of an `nnx.Module`.

    An instance serves one call of plan, apply, compress or load, during which the model is
    unchanged until it is replaced.
    """

    def __init__(self) -> None:
        self._modules = _by_identity(modules)
        self._surroundings = _by_identity(Surroundings)
        self._seen: dict[str, Seen] = {}
        self._built: dict[int, tuple[layers.Chain, layers.Held]] = {}

    def parts(self, model: nnx.Module) -> Iterable[object]:
        """The modules and Variables."""
        return nodes(model)

    def thread_state(self) -> Callable[[], object]:
        """That of JAX's caches; see `rankfold_jax.versions`."""
        return thread_state()

    def layers(self, model: nnx.Module) -> Mapping[str, str]:
        """Stock layers, and any other module that holds a matrix or a kernel of its own."""
        found = tracing.array_holders(model)
        return {path: type(module).__name__ for path, module in found.items()}

    def size(self, model: nnx.Module) -> int:
        """The number of parameters (`nnx.Param`), shared ones counted once."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    def aliases(self, model: nnx.Module, path: str) -> tuple[str, ...]:
        """The further paths of a module that stands in several places."""
        module = self._modules(model)[path]
        return tuple(other for other, found in paths(model) if found is module and other != path)

    def read(self, model: nnx.Module, path: str) -> Op:
        """The layer at a path as an op; refused for what it is or for what surrounds it."""
        module = self._modules(model)[path]
        check_class(module)
        check_state(module)
        self._surroundings(model).check(path, module)
        held = layers.held(module, self._seen.get(path, Seen()))
        op = held.form.op(*held.arrays())
        if isinstance(held.kernel.get_raw_value(), jax.ShapeDtypeStruct):
            return with_weight(op, blank(*op.weight.shape))
        return op

    def trace(self, model: nnx.Module, inputs: Any) -> Trace:
        """One abstract forward pass; nothing is computed."""
        trace, self._seen = tracing.trace(model, tracing.array_holders(model), inputs)
        return trace

    def build(self, model: nnx.Module, path: str, chain: Chain) -> nnx.Module:
        """A `Chain`, which is an `nnx.Sequential` of stock layers."""
        module = self._modules(model)[path]
        held = layers.held(module, self._seen.get(path, Seen()))
        built = layers.build(held.form.stages(chain, held.stack.count), module, held)
        self._built[id(built)] = (built, held)
        return built

    def chain(self, model: nnx.Module, small: nnx.Module, path: str) -> Chain:
        """The chain that stands in the place of a layer in a compressed model, as it is now.

        Args:
            model: the model that was compressed (it still has the layer itself at `path`).
            small: the compressed model, fine-tuned perhaps.
            path: of a layer that was replaced in it.

        Raises:
            Refused: what stands there is not a chain that this adapter built.
        """
        op = self.read(model, path)
        held = layers.held(self._modules(model)[path], self._seen.get(path, Seen()))
        found = dict(paths(small)).get(path)
        if not isinstance(found, layers.Chain):
            raise Refused(f"a {type(found).__name__} stands in its place, not a chain")
        stages: list[Any] = list(found.layers)
        for stage in stages:
            if not isinstance(stage, nnx.Module):
                raise Refused(f"{FOREIGN}it holds a {type(stage).__name__}")
            check_class(stage)
            check_state(stage)
        return checked(op, tuple(layers.stage_op(op, stage, held) for stage in stages))

    def run(self, module: nnx.Module, x: Array) -> Array:
        """The module's output, computed in float64."""
        built, held = self._built[id(module)]
        with jax.enable_x64(True):
            return held.form.run(layers.runner(built, held), x, held.stack.count)

    def precision(self, model: nnx.Module, path: str) -> float:
        """Machine epsilon of the layer's parameters."""
        return epsilon(self._dtype(model, path))

    def replace(
        self, model: nnx.Module, modules: Mapping[str, nnx.Module], *, inplace: bool
    ) -> nnx.Module:
        """Swaps modules by identity, so that shared ones stay shared."""
        if "" in modules:
            if inplace:
                raise RankfoldError("a model that is a single layer cannot be replaced in place")
            return modules[""]
        target = model if inplace else nnx.clone(model)
        own = dict(paths(target))
        exchanged(target, {id(own[path]): module for path, module in modules.items()}, {})
        return target

    def save_weights(self, model: nnx.Module, file: Path) -> None:
        """Every array of the model's state, shared ones once."""
        save_arrays(_arrays(model), file)

    def load_weights(self, model: nnx.Module, file: Path, *more: Path) -> nnx.Module:
        """Fills the model's state after checking names, shapes and dtypes."""
        state = nnx.state(model)
        loaded = load_arrays((file, *more), _arrays(model))
        nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), list(loaded.values())))
        return model

    def refilled(self, model: nnx.Module, path: str, op: Op) -> nnx.Module:
        """A copy of the layer alone."""
        module = self._modules(model)[path]
        held = layers.held(module, self._seen.get(path, Seen()))
        kernel, bias = slot_of(held, 0, 1).filled(op)
        return layers.refilled(module, held, kernel, bias)

    def expanded(self, model: nnx.Module, small: nnx.Module, paths: Sequence[str]) -> nnx.Module:
        """A copy of the compressed model, with a copy of the layer in place of each chain."""
        filled = {
            path: self.refilled(
                model, path, composed(self.read(model, path), self.chain(model, small, path))
            )
            for path in paths
        }
        return self.replace(small, filled, inplace=False)

    def _flow(self, model: nnx.Module, paths: Iterable[str]) -> Flow:
        return flow(model, paths, self._seen)

    def _dtype(self, model: nnx.Module, path: str) -> Any:
        module = self._modules(model)[path]
        return getattr(module, layers.kernel_name(module)).get_raw_value().dtype


def _arrays(model: nnx.Module) -> dict[str, Any]:
    """The arrays of the model's state by name, in the order of its leaves."""
    named: dict[str, Any] = {}
    for path, value in nnx.to_flat_state(nnx.state(model)):
        for rest, leaf in jaxprs.leaves_of(value):
            inside = rest.removeprefix("value").removeprefix(".")
            named[".".join(part for part in (*map(str, path), inside) if part)] = leaf
    return named


def _by_identity(function: Callable[[nnx.Module], T]) -> Callable[[nnx.Module], T]:
    """Remembers what a function gave for each model; models need not be hashable."""
    known: dict[int, T] = {}

    def remembered(model: nnx.Module) -> T:
        if id(model) not in known:
            known[id(model)] = function(model)
        return known[id(model)]

    return remembered
