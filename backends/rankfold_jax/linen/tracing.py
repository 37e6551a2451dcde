"""Trace of one abstract forward pass of a Linen model: its layers and their inputs.

A Linen model shows its layers only when it is called. It is traced to a jaxpr, nothing is computed,
under an interceptor that notes the class and the fields of every module called; what is done with
their parameters is read off the jaxpr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from jax.extend.core import ClosedJaxpr

from rankfold.adapters.base import Trace
from rankfold.errors import Refused
from rankfold.faults import let_through
from rankfold.ops import Extent
from rankfold.plugins.hookspecs import LayerRule
from rankfold_jax.functional.inputs import Inputs, failed
from rankfold_jax.jaxpr import dataflow as jaxprs
from rankfold_jax.jaxpr.macs import counted
from rankfold_jax.jaxpr.output_layers import Leaf, output_layers
from rankfold_jax.layouts import ruled
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.extents import extents_of
from rankfold_jax.layouts.stock_layers import has_own_product
from rankfold_jax.linen.layers import (
    ATTEND,
    CALLS,
    array_name,
    form_of,
    shape_of,
)
from rankfold_jax.linen.rules import Calls, RuledLayer, rule_of, shapes_in
from rankfold_jax.versions import replacements

Path = tuple[str, ...]


_recording: ContextVar[Recording | None] = ContextVar("_recording", default=None)
"""Recording that goes on, set in a context of its own: an interceptor that Flax was interrupted
in removing notes nothing."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """Layer that was called, a stock one or one that a rule reads.

    Attributes:
        module: the layer, unbound.
        kind: the stock class whose computation it does.
        form: its form, or why it has none.
        bias: whether it has a bias.
        rule: the layer rule that reads it, if it is none of the stock layers.
    """

    module: nn.Module
    kind: type[nn.Module]
    form: LayerLayout | Refused
    bias: bool
    rule: LayerRule | None = None


class Recording:
    """Record of what a forward pass showed.

    Args:
        model: a bound module.
        inputs: as for `rankfold.plan`; shapes are enough.

    Raises:
        RankfoldError: the model fails on the inputs.

    Attributes:
        layers: the stock layers called, in order.
        classes: the class name of every module called.
        matrices: the modules called that have a matrix of their own, a stack of vectors is none.
        calls: how often each of the stock layers was called, at least.
        ruled: the calls of the layers that layer rules read.
        dataflow: what the jaxpr does with the kernels.
        trace: the extents of the layers' inputs, and why some must be left alone.
        inputs: the example inputs.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.layers: dict[Path, Recorded] = {}
        self.classes: dict[Path, str] = {}
        self.matrices: set[Path] = set()
        self.calls: Counter[Path] = Counter()
        self.ruled: dict[Path, Calls] = {}
        self.inputs = Inputs(inputs)
        module, variables = model.unbind()
        params = variables.get("params", {})
        self._params = params
        others = {name: value for name, value in variables.items() if name != "params"}
        labels = [
            ".".join(path[:-1]) if path[-1] in ("kernel", "embedding") else None
            for path, _ in leaves(params)
        ]

        def forward(params: Any, others: Any, arrays: list[Any]) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                variables = {"params": params, **others}
                return applied(module, variables, *args, **kwargs)

            return self.inputs.call(call, arrays)

        def traced() -> ClosedJaxpr:
            _recording.set(self)
            # The recording is part of the key of JAX's caches: a layer within a function that was
            # traced before would not be called again.
            with nn.intercept_methods(self._note), replacements(self):
                return jaxprs.traced(forward, params, others, self.inputs.arrays)[0]

        try:
            closed = copy_context().run(traced)
        except Exception as error:  # whatever the model raises on these inputs
            let_through(error)
            raise failed(error, self.inputs) from error
        self.dataflow = jaxprs.find(closed, labels)
        # A matrix has its path for an owner, whether a known layer or not, so that what is
        # multiplied by it is counted.
        owners: list[str | None] = [
            ".".join(path[:-1]) if path[:-1] in self.layers or is_matrix(value) else None
            for path, value in leaves(params)
        ]
        learned = [Leaf(owner, learned=True) for owner in owners]
        rest = len(jax.tree.leaves(others))
        outputs = output_layers(
            closed, [*learned, *(Leaf() for _ in range(rest))], self.inputs.names
        )
        owners += [None] * rest
        self.trace = self._trace(self.dataflow, counted(closed, owners), outputs)

    def _note(self, function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module: Any = context.module
        # An unbound module, or an interceptor that an interrupt has left behind.
        if module.scope is None or _recording.get() is not self:
            return function(*args, **kwargs)
        path = tuple(module.scope.path)
        self.classes.setdefault(path, type(module).__name__)
        output = function(*args, **kwargs)
        params = module.variables.get("params", {}).values()
        if any(is_matrix(value) for value in params if not isinstance(value, Mapping)):
            self.matrices.add(path)
        # "At least": under scan or vmap one call here stands for many.
        self.calls[path] += context.orig_method.func in (*CALLS, ATTEND)
        rule = rule_of(module, context.orig_method.func)
        if rule is not None:
            node = self._node(path)
            refused = Refused("a layer rule reads it")
            # A clone without a parent can be kept: the module itself belongs to a scope that ends.
            layer = Recorded(module.clone(parent=None), type(module), refused, False, rule)
            self.layers.setdefault(path, layer)
            self.ruled.setdefault(path, Calls()).note(module, args, kwargs, shapes_in(node))
            return output
        kind = CALLS.get(context.orig_method.func)
        if kind is None or not module.has_variable("params", array_name(kind)):
            return output
        if path not in self.layers:
            # `nn.Einsum` takes its text as a field or with the call.
            einsum = args[1] if len(args) > 1 else kwargs.get("einsum_str")
            self.layers[path] = _recorded(module, kind, einsum)
        return output

    def _node(self, path: Path) -> Mapping[str, Any]:
        """Return the parameters at a path as the model holds them."""
        node: Any = self._params
        for name in path:
            node = node.get(name, {})
        return node  # type: ignore[no-any-return]  # Flax leaves it Any

    def ruled_layer(self, path: Path) -> RuledLayer:
        """Return a layer that a layer rule reads."""
        layer = self.layers[path]
        assert layer.rule is not None
        return RuledLayer(layer.rule, layer.module, self._node(path))

    def _trace(
        self, dataflow: jaxprs.Dataflow, counts: Mapping[str, int], outputs: frozenset[str]
    ) -> Trace:
        extents: dict[str, tuple[Extent, ...]] = {}
        refusals: dict[str, str] = {}
        for path, layer in self.layers.items():
            name = ".".join(path)
            if layer.rule is not None:
                calls_of_rule = self.ruled[path]
                try:
                    op = self.ruled_layer(path).op()
                except Refused:  # and so it will be when it is read to be compressed
                    continue
                if calls_of_rule.refusal:
                    refusals[name] = calls_of_rule.refusal
                extents[name] = ruled.extents(op, calls_of_rule.shapes, counts[name])
                continue
            if isinstance(layer.form, Refused):
                continue
            try:
                own_product = has_own_product(layer.module)
                calls = self.calls[path]
                extents[name] = extents_of(
                    name, layer.form, dataflow, calls=calls, has_own_product=own_product
                )
            except Refused as refused:
                refusals[name] = refused.reason
        return Trace(extents, refusals, counts, outputs)


def _recorded(module: Any, kind: type[nn.Module], einsum: str | None) -> Recorded:
    kernel = shape_of(module.get_variable("params", array_name(kind)))
    bias = module.get_variable("params", "bias")
    shape = None if bias is None else shape_of(bias)
    try:
        form: LayerLayout | Refused = form_of(module, kind, kernel, shape, einsum)
    except Refused as refused:
        form = refused
    return Recorded(module.clone(parent=None), kind, form, bias is not None)


def applied(module: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Apply a module, with every collection but the parameters mutable; return its output."""
    keys = jax.random.key(0)
    output, _ = module.apply(
        variables,
        *args,
        # Always the same keys: dropout that is not switched off is the same in every run.
        rngs={"params": keys, "dropout": keys},
        # Statistics and caches may be written to, as in a decoder; what is written is dropped.
        mutable=nn.DenyList("params"),
        **kwargs,
    )
    return output


def is_matrix(value: Any) -> bool:
    """True if a parameter has two axes longer than 1."""
    return sum(size > 1 for size in shape_of(value)) > 1


def leaves(tree: Any) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of every parameter of a tree of dicts, boxed ones in their boxes."""
    flat = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda value: isinstance(value, nn.meta.AxisMetadata)
    )[0]
    for path, value in flat:
        yield tuple(str(entry.key) for entry in path), value
