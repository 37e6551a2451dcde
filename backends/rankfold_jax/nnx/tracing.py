"""One abstract forward pass of an NNX model: what every layer is given, and who reads its kernel.

The model is traced to a jaxpr, nothing is computed. Layers of the traced copy are of subclasses
that record who looks up their kernel; what the kernels are multiplied with is read off the jaxpr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar, copy_context
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr

from rankfold.adapters.base import Trace
from rankfold.errors import Refused
from rankfold.faults import let_through
from rankfold.ops import Extent, Op
from rankfold.state.restoration import settled
from rankfold_jax.functional.inputs import Inputs, failed
from rankfold_jax.jaxpr import dataflow as jaxprs
from rankfold_jax.jaxpr.macs import counted
from rankfold_jax.jaxpr.output_layers import Leaf, output_layers
from rankfold_jax.layouts import ruled
from rankfold_jax.layouts.extents import extents_of, seen_axes
from rankfold_jax.layouts.stacks import ObservedAxes
from rankfold_jax.layouts.stock_layers import has_own_product
from rankfold_jax.nnx import rules
from rankfold_jax.nnx.layer_classes import KINDS, kernel_name, kind_of
from rankfold_jax.nnx.layers import form_of
from rankfold_jax.nnx.low_rank_sequential import PLAIN
from rankfold_jax.nnx.module_tree import modules, variables
from rankfold_jax.versions import replacements

_PATH, _PARTS = "rankfold_path", "rankfold_parts"
_NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)
_WATCHED = ("kernel", "embedding", "bias")


class Watch:
    """A record of calls of layers, and of look-ups of their arrays by anything but themselves."""

    def __init__(self) -> None:
        self.refusals: dict[str, str] = {}
        self.running: list[str] = []
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def called(self, path: str, module: nnx.Module, args: Any, kwargs: Any) -> None:
        """Note a call of a layer; of one that a rule reads it tells what the arrays do not."""
        self.calls[path] += 1
        # Only layers that rules read have it noted.
        parts = vars(module).get(_PARTS)
        if parts is None:
            return
        inputs = (*args, *kwargs.values())
        if len(inputs) != 1:
            self.refusals.setdefault(path, "it is called with more than its input")
        # Under vmap or scan the arrays are those of one layer, smaller than in the model.
        elif parts != _shapes(module):
            self.refusals.setdefault(path, "a rule reads one layer; this is a stack of them")
        else:
            self.shapes.setdefault(path, []).append(np.shape(inputs[0]))

    def read(self, path: str, name: str) -> None:
        """Note that an array of a layer is read by something else than the layer."""
        self.refusals.setdefault(path, f"its {name} is read from outside the layer")

    def is_running(self, path: str) -> bool:
        """Tell whether a layer is the innermost that runs: it may look up its arrays."""
        return bool(self.running) and self.running[-1] == path


_watch: ContextVar[Watch | None] = ContextVar("_watch", default=None)
"""The watch of this thread's trace. It is set in a context of its own, which is left by one step of
the interpreter's, whatever arrives."""


@settled
def trace(
    model: nnx.Module, layers: Mapping[str, nnx.Module], inputs: Any
) -> tuple[Trace, dict[str, ObservedAxes]]:
    """Trace the model once and leave it as it was.

    Args:
        model: the model.
        layers: the layers to watch, by path.
        inputs: an array, a tuple or list (positional) or a mapping (keyword arguments); shapes
            (`jax.ShapeDtypeStruct`) are enough.

    Returns:
        The trace, and what it showed of the axes of the layers' kernels.

    Raises:
        RankfoldError: the model fails on the inputs.
    """
    inputs, watch = Inputs(inputs), Watch()
    # Classes and attributes are exchanged on the copy, which is thrown away.
    copy = nnx.clone(model)
    inside = modules(copy)
    watched = {
        path: inside[path]
        for path in layers
        if kind_of(inside[path]) is not None and _plain(inside[path])
    }
    ruled_ops = _ruled_ops(model, layers)
    # a subclass of a stock layer may be both, and is to be counted once
    for path in {**watched, **ruled_ops}:
        _put_under_watch(inside[path], path, has_rule=path in ruled_ops)
    kernels = {id(getattr(module, kernel_name(module))): path for path, module in watched.items()}
    # The outer layers come first in `layers`; reversed, they win where modules hold one array.
    holders = {
        id(value): path
        for path in reversed(list(layers))
        for value in variables(inside[path]).values()
    }
    closed, arrays = _traced(copy, inputs, watch)
    owners = [holders.get(id(value)) for value in arrays]
    dataflow = jaxprs.find(closed, [kernels.get(id(value)) for value in arrays])
    counts = counted(closed, owners)
    extents, seen, refusals = _extents(watched, dataflow, watch.calls)
    for path, op in ruled_ops.items():
        extents[path] = ruled.extents(op, watch.shapes.get(path, ()), counts[path])
    leaves = [
        Leaf(owner, isinstance(value, nnx.Param))
        for owner, value in zip(owners, arrays, strict=True)
    ]
    outputs = output_layers(closed, leaves, inputs.names)
    return Trace(extents, {**refusals, **watch.refusals}, counts, outputs), seen


def _put_under_watch(module: nnx.Module, path: str, *, has_rule: bool) -> None:
    """Make a module of a traced copy tell the watch of its calls and of look-ups of its arrays."""
    if has_rule:
        setattr(module, _PARTS, _shapes(module))
    # A string is a static attribute and part of the graph, so it survives split and merge and
    # the transforms within the model, which make modules anew.
    setattr(module, _PATH, path)
    module.__class__ = _watched(type(module))


def _traced(copy: nnx.Module, inputs: Inputs, watch: Watch) -> tuple[ClosedJaxpr, list[Any]]:
    """Return the jaxpr of a model, and the arrays or Variables that are its first inputs.

    Raises:
        RankfoldError: the model fails on the inputs.
    """
    graphdef, state = nnx.split(copy)

    def forward(state: Any, arrays: list[Any]) -> Any:
        return inputs.call(nnx.merge(graphdef, state), arrays)

    def run() -> ClosedJaxpr:
        _watch.set(watch)
        # The watch is part of the key of JAX's caches: a function that was traced without it would
        # be taken from the cache, and no look-up in it would be seen.
        with replacements(watch):
            return jaxprs.traced(forward, state, inputs.arrays)[0]

    try:
        closed = copy_context().run(run)
    except Exception as error:  # whatever the model raises on these inputs
        let_through(error)
        raise failed(error, inputs) from error
    # a Variable that holds several arrays stands for each of them
    return closed, [value for _, value in nnx.to_flat_state(state) for _ in jax.tree.leaves(value)]


def _extents(
    watched: Mapping[str, nnx.Module], dataflow: jaxprs.Dataflow, calls: Mapping[str, int]
) -> tuple[dict[str, tuple[Extent, ...]], dict[str, ObservedAxes], dict[str, str]]:
    """Return extents of stock layers, axes of their kernels, and why a layer has no extents."""
    extents: dict[str, tuple[Extent, ...]] = {}
    seen: dict[str, ObservedAxes] = {}
    refusals: dict[str, str] = {}
    for path, module in watched.items():
        try:
            # Before the extents, which may refuse: the axes are known all the same.
            seen[path] = seen_axes(path, dataflow)
            extents[path] = extents_of(
                path,
                form_of(module),
                dataflow,
                calls=calls[path],
                has_own_product=has_own_product(module),
            )
        except Refused as refused:
            refusals[path] = refused.reason
    return extents, seen, refusals


def _ruled_ops(model: nnx.Module, layers: Mapping[str, nnx.Module]) -> dict[str, Op]:
    """Read the layers that have rules, as far as these can."""
    ops = {}
    for path, module in layers.items():
        rule = rules.rule_of(module)
        if rule is not None:
            try:
                ops[path] = rules.read(rule, module)
            except Refused:  # and so it will be when it is read to be compressed
                continue
    return ops


def _shapes(module: nnx.Module) -> str:
    """Return the names and shapes of a module's own arrays, as a word that a graph can hold."""
    # As a text it is a static attribute, hashable and comparable, as graph definitions need it.
    return str({name: np.shape(v.get_raw_value()) for name, v in variables(module).items()})


@cache
def _watched(kind: type[nnx.Module]) -> type[nnx.Module]:
    """Make a subclass that tells the watch when its arrays are looked up from outside."""

    def calling(name: str) -> Any:
        original = getattr(kind, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            path = vars(self).get(_PATH)
            watch = _watch.get()
            if watch is None or path is None:
                return original(self, *args, **kwargs)
            watch.called(path, self, args, kwargs)
            running = watch.running
            running.append(path)
            try:
                return original(self, *args, **kwargs)
            finally:
                watch.running.pop()

        return call

    def look_up(self: Any, name: str) -> Any:
        # Also for names of its own, so that this must not look up anything on `self` by a dot.
        value = object.__getattribute__(self, name)
        watch = _watch.get()
        if watch is not None and (name in _WATCHED or isinstance(value, nnx.Variable)):
            path = vars(self).get(_PATH)
            if path is not None and not watch.is_running(path):
                # A replacement answers for what can be told without values; one of a rule does not.
                if (
                    isinstance(value, nnx.Variable)
                    and name in _WATCHED
                    and _PARTS not in vars(self)
                ):
                    return _described(value, path, name)
                if value is not None:
                    watch.read(path, name)
        return value

    # Looking a method up on an instance goes to its class: the subclass has to have them.
    parts = {name: calling(name) for name in ("__call__", "attend") if hasattr(kind, name)}
    return type(kind.__name__, (kind,), {**parts, "__getattribute__": look_up})


def _described(variable: nnx.Variable[Any], path: str, name: str) -> nnx.Variable[Any]:
    """Copy a Variable of a layer as one that tells the watch when more than its shape is read."""
    kind: Any = _telling(type(variable))
    described: nnx.Variable[Any] = kind.from_metadata(
        variable.get_raw_value(), {**variable.get_metadata(), _PATH: (path, name)}
    )
    return described


@cache
def _telling(kind: type[nnx.Variable[Any]]) -> type[nnx.Variable[Any]]:
    def look_up(self: Any, name: str) -> Any:
        if name in PLAIN:
            return getattr(object.__getattribute__(self, "_raw_value"), name)
        watch = _watch.get()
        names = object.__getattribute__(self, "_var_metadata").get(_PATH)
        if watch is not None and names is not None:
            watch.read(*names)
        return object.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": look_up})


def array_holders(model: nnx.Module) -> dict[str, nnx.Module]:
    """Find every module that could be a layer: stock ones, others with a matrix of their own."""
    return {
        path: module
        for path, module in modules(model).items()
        if isinstance(module, KINDS)
        or rules.rule_of(module) is not None
        or (
            not isinstance(module, _NORMS)
            and any(_is_matrix(variable) for variable in variables(module).values())
        )
    }


def _is_matrix(variable: nnx.Variable[Any]) -> bool:
    shape = getattr(variable.get_raw_value(), "shape", ())
    return isinstance(variable, nnx.Param) and sum(size > 1 for size in shape) > 1


def _plain(module: nnx.Module) -> bool:
    """Tell whether the kernel is an ordinary array, whose way through a jaxpr can be followed."""
    value = getattr(module, kernel_name(module)).get_raw_value()
    return isinstance(value, jax.Array | jax.ShapeDtypeStruct | np.ndarray)
