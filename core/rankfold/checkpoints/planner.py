"""A checkpoint as a model whose layers are read one at a time: what `rankfold.plan` needs of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import numpy as np

from rankfold.adapters.base import Trace
from rankfold.adapters.output_layers import by_names
from rankfold.adapters.tensor_rules import ORDER, LayerTensor, StoresInterpolations, TensorRule
from rankfold.checkpoints.reader import Checkpoint
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import contained, shown
from rankfold.linalg import Array, is_finite, read_only
from rankfold.ops import Chain, Conv, ConvTranspose, Extent, Op, blank, is_op
from rankfold.ops.geometry import is_int
from rankfold.plugins.registry import registry
from rankfold.storage.model_folders import refusals_of
from rankfold.storage.wrapper_prefixes import wrapper_names

_POSITIONS = 2**40
"""Of an input: no input has as many, and a shape that does is a mistake."""
_GEOMETRY = ("stride", "padding", "dilation", "groups")
_KnownInput: TypeAlias = tuple[Extent | None, Mapping[str, Any]]
# Quantised weights may well have a floating-point type (float8), so their type does not tell. The
# scale beside them, under the name of the weight with one of these ends, does.
_SCALES = ("_scale", "_scale_inv", "_scales", "_zero_point")


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of a checkpoint that are one layer, and the rule that reads them.

    Attributes:
        rule: of those registered, by name.
        weight: the name of the tensor.
        bias: that of the bias; None without one.
        refusal: why the layer is left alone; "" where it is not.
        geometry: stride, padding, dilation and groups, as far as they are given.
    """

    rule: str
    weight: str
    bias: str | None
    refusal: str
    geometry: Mapping[str, Any] = field(default_factory=dict)

    def blank(self, checkpoint: Checkpoint) -> Op:
        """Return the layer as an op without its values; only the headers are looked at.

        Raises:
            RankfoldError: weight and bias do not fit each other.
            Refused: the rule fails.
        """
        bias = None if self.bias is None else blank(*checkpoint.entry(self.bias).shape)
        weight = blank(*checkpoint.entry(self.weight).shape)
        return self._op(weight, bias)

    def read(self, checkpoint: Checkpoint) -> Op:
        """Read the layer as an op.

        Raises:
            Refused: the layer is left alone, or weight and bias do not fit each other.
        """
        if self.refusal:
            raise Refused(self.refusal)
        weight = checkpoint.array(self.weight)
        bias = None if self.bias is None else checkpoint.array(self.bias)
        try:
            return self._op(weight, bias)
        # An op checks its parts as it is made. Of a file that a rule reads by its names alone, a
        # misfit says that it is no layer of that kind, which is no reason to end the run.
        except RankfoldError as error:
            raise Refused(str(error)) from None

    def _op(self, weight: Array, bias: Array | None) -> Op:
        with contained(f"tensor rule {self.rule!r}", Refused):
            # A view that cannot be written through: the rule may be a plugin's, and what it changed
            # in a cached or mapped array would change the checkpoint for all that follows.
            op = rule_of(self.rule).op(
                self.weight, read_only(weight), None if bias is None else read_only(bias)
            )
            if not is_op(op):
                raise TypeError(f"op gave {type(op).__name__}")
        # Outside the net: what is given as geometry is the user's, and a mistake in it not the
        # rule's.
        return replace(op, **self.geometry) if isinstance(op, (Conv, ConvTranspose)) else op

    def stages(self, chain: Chain) -> Mapping[str, Array]:
        """Return the tensors that take the place of weight and bias, by name.

        Raises:
            Refused: the rule fails.
        """
        with contained(f"tensor rule {self.rule!r}", Refused):
            tensors = dict(rule_of(self.rule).stages(self.weight, chain))
            for name, array in tensors.items():
                if not isinstance(name, str) or not isinstance(array, np.ndarray):
                    raise TypeError(f"stages gave {type(array).__name__} for {shown(name)}")
        return tensors


@dataclass(frozen=True)
class Reader:
    """Reads one layer of a checkpoint; a class, because executors cannot pickle a closure."""

    checkpoint: Checkpoint
    tensors: LayerTensors

    def __call__(self) -> Op:
        """Read the layer as an op."""
        return self.tensors.read(self.checkpoint)


class CheckpointAdapter:
    """Reads the layers of a checkpoint, which is no model: nothing is built or replaced in it.

    Args:
        excluded: tells of a layer path whether it is to be left alone: its values may be anything.
        inputs: as for `rankfold.compress_checkpoint`.

    Raises:
        RankfoldError: the inputs are no shapes.
    """

    def __init__(
        self, excluded: Callable[[str], bool] = lambda path: False, inputs: Any = None
    ) -> None:
        self._excluded = excluded
        self._known_inputs = _known_inputs(inputs)
        self._known: tuple[Checkpoint, dict[str, LayerTensors]] | None = None

    def layer_tensors(self, model: Checkpoint) -> dict[str, LayerTensors]:
        """Return the layers that a checkpoint holds, by path, in the order of its files."""
        if self._known is None or self._known[0] is not model:
            layers = {
                path: replace(tensors, geometry=self._of(path)[1])
                for path, tensors in layer_tensors(model).items()
            }
            # A pattern that matches nothing is most often a typing error, and would silently leave
            # the MACs of those layers uncounted.
            for pattern in self._known_inputs:
                if not any(fnmatchcase(path, pattern) for path in layers):
                    raise RankfoldError(f"inputs: {pattern!r} matches no layer of the checkpoint")
            self._known = model, layers
        return self._known[1]

    def _of(self, path: str) -> _KnownInput:
        return next((g for p, g in self._known_inputs.items() if fnmatchcase(path, p)), (None, {}))

    def layers(self, model: Checkpoint) -> Mapping[str, str]:
        """Return the shapes of the layers' weights, by path."""
        return {
            path: " × ".join(map(str, model.entry(tensors.weight).shape))
            for path, tensors in self.layer_tensors(model).items()
        }

    def size(self, model: Checkpoint) -> int:
        """Number of values in all floating-point tensors; they count as parameters."""
        return sum(
            math.prod(model.entry(name).shape) for name in model.owner if model.is_float(name)
        )

    def aliases(self, model: Checkpoint, path: str) -> tuple[str, ...]:
        """Return no aliases: a tensor in a file has one name."""
        return ()

    def reader(self, model: Checkpoint, path: str) -> Reader:
        """Return a picklable reader of one layer, for `rankfold.adapters.base.Distributed`."""
        return Reader(model, self.layer_tensors(model)[path])

    def read(self, model: Checkpoint, path: str) -> Op:
        """Read a layer as an op.

        Raises:
            Refused: it is left alone.
            RankfoldError: it has values that are not finite.
        """
        tensors = self.layer_tensors(model)[path]
        op = tensors.read(model)
        # Of excluded layers, which are copied, the values do not matter. In any other, NaN is more
        # likely a broken file than a wish, and would come back as NaN in every factor.
        for name, values in ((tensors.weight, op.weight), (tensors.bias, op.bias)):
            if values is not None and not self._excluded(path) and not is_finite(values):
                raise RankfoldError(
                    f"tensor {name!r} has NaN or infinite values; to copy it as it is, pass "
                    f"exclude={path!r}"
                )
        return op

    def why_not_interpolated(self, model: Checkpoint, path: str) -> str:
        """Return why the stages of a layer cannot be interpolative."""
        name = self.layer_tensors(model)[path].rule
        rule = rule_of(name)
        if isinstance(rule, StoresInterpolations) and rule.stores_interpolations:
            return ""
        return f"tensor rule {name!r} stores no interpolative stages"

    def trace(self, model: Checkpoint, inputs: Any) -> Trace:
        """Return the extents that are given for layers, by glob patterns of their paths."""
        extents: dict[str, tuple[Extent, ...]] = {}
        for path in self.layer_tensors(model):
            extent, _ = self._of(path)
            extents[path] = () if extent is None else (extent,)
        # No outputs: files have no dataflow that would show them.
        return Trace(extents, {}, uncounted=frozenset(p for p, e in extents.items() if not e))

    def named_outputs(self, model: Checkpoint) -> Iterable[str]:
        """Name the layers that give outputs, by names alone: a place in the files tells nothing."""
        return by_names(list(self.layer_tensors(model)), wrapper_names())


def rule_of(name: str) -> TensorRule:
    """Return the registered tensor rule of that name."""
    return registry().tensor_rules[name]


def layer_tensors(checkpoint: Checkpoint) -> dict[str, LayerTensors]:
    """Return the layers of a checkpoint by path, in the order of its files."""
    # The last declared is asked first. rankfold's own plugins load first and have the general
    # rules, by names and axes, so a plugin for certain models comes before them.
    rules = dict(reversed(registry().tensor_rules.items()))
    layers: dict[str, LayerTensors] = {}
    for name in checkpoint.owner:
        recognised = _recognised(checkpoint, name, rules)
        if recognised is None:
            continue
        path, tensors = recognised
        # Two names may lead to one path, "a.weight" and "a.kernel"; one plan cannot serve both.
        if path in layers:
            raise RankfoldError(
                f"tensors {layers[path].weight!r} and {name!r} are both the weight of {path!r}"
            )
        layers[path] = tensors
    return _refused(checkpoint, layers)


def _refused(checkpoint: Checkpoint, layers: dict[str, LayerTensors]) -> dict[str, LayerTensors]:
    """Return the layers, with refusals for those that must be left alone in the model."""
    if checkpoint.kind is None:
        return layers
    ops: dict[str, tuple[str, Op]] = {}
    for path, tensors in layers.items():
        # What does not fit is refused when it is read, with its own reason.
        if not tensors.refusal:
            with suppress(Refused, RankfoldError):
                ops[path] = tensors.weight, tensors.blank(checkpoint)
    reasons = refusals_of(checkpoint.kind, checkpoint.settings, ops)
    return {
        path: replace(tensors, refusal=tensors.refusal or reasons.get(path, ""))
        for path, tensors in layers.items()
    }


def _recognised(
    checkpoint: Checkpoint, name: str, rules: Mapping[str, TensorRule]
) -> tuple[str, LayerTensors] | None:
    """Return the path and the tensors of the layer whose weight a tensor is; None of no layer."""
    shape, failed = checkpoint.entry(name).shape, ""
    for word, rule in rules.items():
        try:
            known = _asked(word, rule, name, shape, checkpoint.settings)
        except Refused as refused:  # so it is not known whether the next rule may have it
            failed = failed or refused.reason
            continue
        if known is None:
            continue
        # A later rule takes the tensor, but the one that failed might have read it otherwise,
        # transposed for instance: a layer decomposed by the wrong one would be wrong without an
        # error.
        known = replace(known, refusal=failed) if failed else known
        return known.path, _checked(checkpoint, word, name, known)
    return None


def _asked(
    word: str, rule: TensorRule, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
) -> LayerTensor | None:
    with contained(f"tensor rule {word!r}", Refused):
        known = rule.recognise(name, shape, settings)
        if not isinstance(known, LayerTensor | None):
            raise TypeError(f"recognise gave {type(known).__name__}")
        return known


def _checked(checkpoint: Checkpoint, rule: str, name: str, known: LayerTensor) -> LayerTensors:
    # A rule tells from a name what its bias would be called, not that there is one.
    bias = known.bias if known.bias and known.bias in checkpoint else None
    refusal = known.refusal
    if refusal:
        return LayerTensors(rule, name, None, refusal)
    # A float8 type can be decomposed; integers and packed types below 8 bits cannot. Asked before
    # the scales, whose message would otherwise hide the plainer reason.
    if not checkpoint.is_float(name):
        refusal = f"it is stored as {checkpoint.entry(name).dtype}"
    elif any(name + end in checkpoint for end in _SCALES):
        refusal = "it is quantised: its values stand for others, with a scale beside them"
    elif bias is not None and not checkpoint.is_float(bias):
        refusal = f"its bias is stored as {checkpoint.entry(bias).dtype}"
    elif _is_interpolative(checkpoint, name):
        refusal = "interpolative already: compress the original checkpoint to decompose it anew"
    return LayerTensors(rule, name, bias, refusal)


def _is_interpolative(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether an order of channels lies beside a weight, which is then a part of a stage."""
    owner, dot, _ = name.rpartition(".")
    order = f"{owner}{dot}{ORDER}"
    if order not in checkpoint:
        return False
    entry = checkpoint.entry(order)
    return entry.dtype.startswith("I") and len(entry.shape) == 1


def _known_inputs(inputs: Any) -> dict[str, _KnownInput]:
    """Return extents and geometries by pattern."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        raise RankfoldError(
            f"inputs: {type(inputs).__name__}; for a checkpoint give, for patterns of layers, "
            "the shape of their input without its channels, as {'conv*': (1, 32, 32)}"
        )
    parsed: dict[str, _KnownInput] = {}
    for pattern, value in inputs.items():
        geometry = dict(value) if isinstance(value, Mapping) else {}
        shape = geometry.pop("shape", None) if isinstance(value, Mapping) else value
        unknown = sorted(geometry.keys() - _GEOMETRY)
        if unknown:
            raise RankfoldError(
                f"inputs: {pattern!r} has {unknown[0]!r}; give a shape and {', '.join(_GEOMETRY)}"
            )
        parsed[pattern] = _extent(pattern, shape), geometry
    return parsed


def _extent(pattern: str, extent: Any) -> Extent:
    sizes = tuple(extent) if isinstance(extent, (list, tuple)) else None
    if not sizes or not all(is_int(size) and size > 0 for size in sizes):
        raise RankfoldError(
            f"inputs: {pattern!r} is {extent!r}; give the shape of the input without its channels"
        )
    if math.prod(sizes) >= _POSITIONS:
        raise RankfoldError(f"inputs: {pattern!r} is {extent!r}: more positions than any input has")
    return sizes
