"""Layers that give the outputs of a model, seen while it runs.

Every operation beneath autograd is noted. A value that a layer gives is marked with that call, and
the mark goes on to what is computed from that value alone: reshaped, selected, scaled, squashed,
with biases, constants or inputs of the model added, or beside others in one tensor. Another
activation or another weight ends it. Marks lie on storages, so that views and changes in place need
no rules of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from rankfold_torch.operation_mode import OperationMode

Marks: TypeAlias = frozenset[tuple[str, int]]
"""Calls of layers that an activation is computed from; none where these are mixed."""

_LEARNED, _GIVEN = "learned", "given"
"""States of other tensors that are no constants: weights of the model, and its inputs."""
State: TypeAlias = "Marks | str"
_MIXED: Marks = frozenset()

_JOINING = frozenset(
    [
        "cat",
        "stack",
        "copy_",
        "where",
        "slice_scatter",
        "select_scatter",
        "index_put",
        "index_put_",
        "_index_put_impl_",
        "index_copy",
        "index_copy_",
        "scatter",
        "scatter_",
        "masked_scatter",
        "masked_scatter_",
    ]
)
"""Operations whose operands stand beside each other in the result."""
_ADDING = frozenset(["add", "add_", "sub", "sub_", "rsub"])
_SELECTING = frozenset(
    [
        "gather",
        "index",
        "index_select",
        "masked_select",
        "masked_fill",
        "masked_fill_",
        "take",
        "embedding",
    ]
)
"""Operations with the first operand alone in the result; the others say where."""
_INTERNAL = ("past", "cache", "mems", "attentions", "hidden_states")
"""Parts of the names of returned values that are caches or show the inside of a model."""
_NO_RECORDS = (type, nn.Module, types.FunctionType, types.MethodType, types.ModuleType)
"""Objects with attributes that a model does not return for their tensors."""
_DEPTH = 8


class OutputLayers(OperationMode):  # type: ignore[no-untyped-call]  # of torch's own base
    """Marks activations with the layers they come from, while it is entered.

    Args:
        model: whose parameters are weights.
        inputs: the tensors among these are the model's inputs.
        layers: the layers to watch, by path.
    """

    def __init__(self, model: nn.Module, inputs: Any, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._states: dict[int, tuple[StorageWeakRef, State]] = {}
        self._calls = itertools.count()
        watched = {id(module) for module in layers.values()}
        # A module that contains watched layers (attention, a block that a rule reads) would mark
        # its output again and hide the layer inside that has given it.
        self._innermost = {
            path
            for path, module in layers.items()
            if not any(id(below) in watched for below in _below(module))
        }
        for parameter in model.parameters():
            # A learned scalar scales as a constant does, and so does not end a mark.
            if not nn.parameter.is_lazy(parameter) and parameter.numel() > 1:
                self._set(parameter, _LEARNED)
        for tensor in returned(inputs):
            self._set(tensor, _GIVEN)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation and note what became of the marks."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        operands = [*_tensors(args), *_tensors((kwargs or {}).values())]
        # The condition is not in the result.
        if name == "where":
            operands = operands[1:]
        elif name in _SELECTING:
            operands = operands[:1]
        states = [self._state(tensor) for tensor in operands]
        if any(state is not None for state in states):
            # A view has the storage of its operand, and with it the mark that lies there already.
            # An operation in place has it, too, but changes what the storage holds.
            views = set() if func._schema.is_mutable else {_key(tensor) for tensor in operands}
            state = _joined(name, states)
            for tensor in _tensors((result,)):
                # Where all operands are constants, no state is noted: most of the tensors of a run.
                if state is not None and _key(tensor) not in views:
                    self._set(tensor, state)
        return result

    def mark(self, path: str, output: Any) -> None:
        """Mark the output of a call of a layer."""
        if path in self._innermost:
            # By call, not by layer: two calls of a shared layer that are added up are mixed.
            marks = frozenset({(path, next(self._calls))})
            for tensor in returned(output):
                self._set(tensor, marks)

    def of(self, output: Any) -> frozenset[str] | None:
        """Return the layers whose output is one of the values that the model returns.

        None where it returns no tensors (lists of numbers, NumPy arrays), which cannot be traced.
        """
        states = [self._state(tensor) for tensor in returned(output)]
        if not states:
            return None
        # A tensor returned without any mark (of mixed activations) names no layer.
        return frozenset(
            path for state in states if isinstance(state, frozenset) for path, _ in state
        )

    def _state(self, tensor: torch.Tensor) -> State | None:
        key = _key(tensor)
        # Offloaded parameters are made anew for each call.
        if isinstance(tensor, nn.Parameter) and key not in self._states and tensor.numel() > 1:
            self._set(tensor, _LEARNED)
        reference, state = self._states.get(key, (None, None))
        # The storage is gone and its address may belong to another tensor now.
        if reference is None or reference.expired():  # type: ignore[no-untyped-call]  # same
            return None
        return state

    def _set(self, tensor: torch.Tensor, state: State) -> None:
        key = _key(tensor)
        if key:  # the weak reference keeps the address from being used again
            reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._states[key] = reference, state


def returned(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in whatever a model returns, but for caches and what shows its inside."""
    return _within(value, 0, {})


def _within(value: Any, depth: int, seen: dict[int, Any]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < _DEPTH and id(value) not in seen:
        seen[id(value)] = value  # an object may lead back to itself
        for name, inside in _children(value):
            if not any(word in name.lower() for word in _INTERNAL):
                yield from _within(inside, depth + 1, seen)


def _children(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), inside) for name, inside in value.items()]
    if hasattr(value, "_asdict"):  # a named tuple
        return [(str(name), inside) for name, inside in value._asdict().items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [("", inside) for inside in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, _NO_RECORDS) or not hasattr(value, "__dict__"):
        return []
    return list(vars(value).items())  # a record of the model's own class, a distribution


def _joined(name: str, states: Iterable[State | None]) -> State | None:
    """Return the state of a result, given those of its operands."""
    # Constants have no state and end no mark.
    kinds = {state for state in states if state is not None}
    values = {state for state in kinds if isinstance(state, frozenset)}
    # No activation among the operands: weights with inputs make neither of the two.
    if not values:
        return _MIXED if len(kinds) > 1 else next(iter(kinds), None)
    if name in _JOINING:
        return frozenset[tuple[str, int]]().union(*values)
    # Two activations computed together, or one that a weight multiplies, make a new one. A bias
    # that is added does not.
    if len(values) > 1 or (_LEARNED in kinds and name not in _ADDING):
        return _MIXED
    return values.pop()


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


def _below(module: nn.Module) -> Iterator[nn.Module]:
    modules = iter(module.modules())
    next(modules)
    return modules


def _key(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's storage; 0 where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, nested and wrapped tensors
        return 0
