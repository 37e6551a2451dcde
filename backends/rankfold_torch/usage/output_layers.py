"""Layers that give the outputs of a model, seen while it runs.

Every operation beneath autograd is noted, and what becomes of the marks that calls of layers put on
their outputs (`rankfold.adapters.output_marks`). Marks lie on storages, so that views and changes
in place need no rules of their own.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from rankfold.adapters.output_marks import Activation, Calls, beside, is_internal
from rankfold_torch.operation_mode import OperationMode
from rankfold_torch.torch_internals import schema_of, storage_of, stored_values

_LEARNED, _INPUT = "learned", "input"
"""States of other tensors that are no constants: weights of the model, and its inputs."""
State: TypeAlias = "Activation | str"

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
_UNTAGGED = frozenset(["rsub", "complex"])
"""Operations on elements that PyTorch does not tag as pointwise."""
_NORMALIZATIONS = ("batch_norm", "group_norm", "layer_norm", "rms_norm")
"""Parts of the names of operations that scale each channel by a weight."""
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
_NO_RECORDS = (type, nn.Module, types.FunctionType, types.MethodType, types.ModuleType)
"""Objects with attributes that a model does not return for their tensors."""
_DEPTH = 8
"""Containers in each other that a result is searched through."""


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
        self._calls = Calls()
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
            self._set(tensor, _INPUT)

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
            results = list(_tensors((result,)))
            # A view has the storage of its operand, and with it the mark that lies there already.
            # An operation in place has it, too, but changes what the storage holds.
            views = set() if schema_of(func).is_mutable else {_key(tensor) for tensor in operands}
            state = self._joined(func, states, results)
            for tensor in results:
                # Where all operands are constants, no state is noted: most of the tensors of a run.
                if state is not None and _key(tensor) not in views:
                    self._set(tensor, state)
        return result

    def mark(self, path: str, output: Any) -> None:
        """Mark the output of a call of a layer."""
        if path not in self._innermost:
            return
        tensors = list(returned(output))
        states = [self._state(tensor) for tensor in tensors]
        activation = self._calls.mark(
            path,
            [state for state in states if isinstance(state, Activation)],
            size=sum(tensor.numel() for tensor in tensors),
            looks_up=bool(states) and all(state == _LEARNED for state in states),
        )
        for tensor in tensors:
            self._set(tensor, activation)

    def of(self, output: Any) -> frozenset[str] | None:
        """Return the layers whose output is one of the values that the model returns.

        Where none of these can be traced (lists of numbers, copies that NumPy made), layers whose
        output no other layer used; None where no layer was called.
        """
        states = [(tensor, self._state(tensor)) for tensor in returned(output)]
        activations = [(t, state) for t, state in states if isinstance(state, Activation)]
        if not activations:
            return self._calls.unused()
        # A number beside other outputs is a penalty or a statistic.
        arrays = [(t, state) for t, state in activations if t.ndim] or activations
        return self._calls.layers(state for _, state in arrays)

    def _joined(
        self, func: Any, states: Sequence[State | None], results: Sequence[torch.Tensor]
    ) -> State | None:
        """Return the state of what an operation gives."""
        name = func.overloadpacket.__name__
        # Constants have no state and end no mark.
        kinds = {state for state in states if isinstance(state, str)}
        activations = [state for state in states if isinstance(state, Activation)]
        # No activation among the operands: weights with inputs make neither of the two.
        if not activations:
            return Activation() if len(kinds) > 1 else next(iter(kinds), None)
        if name in _JOINING:
            return beside(activations)
        by_element = torch.Tag.pointwise in func.tags or name in _UNTAGGED
        return self._calls.joined(
            activations,
            sum(result.numel() for result in results[:1]),
            by_element=by_element or any(part in name for part in _NORMALIZATIONS),
            weights=_LEARNED in kinds,
            adds=name in _ADDING,
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
        # A number picked from a weight is as a learned scalar.
        return None if state == _LEARNED and tensor.numel() == 1 else state

    def _set(self, tensor: torch.Tensor, state: State) -> None:
        key = _key(tensor)
        if key:  # the weak reference keeps the address from being used again
            storage = _with_storage(tensor).untyped_storage()
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
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
            if not is_internal(name):
                yield from _within(inside, depth + 1, seen)


def _children(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), inside) for name, inside in value.items()]
    if hasattr(type(value), "_asdict"):  # a named tuple
        return [(str(name), inside) for name, inside in value._asdict().items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [("", inside) for inside in value]
    if isinstance(value, np.ndarray):
        return [("", value.base)]  # the tensor with whose memory `Tensor.numpy` made it
    if isinstance(value, _NO_RECORDS):
        return []
    # Attributes and slots of a record of the model's own class, a data class, a distribution.
    state: Any = object.__getstate__(value)
    parts = state if isinstance(state, tuple) else (state,)
    return [item for part in parts if isinstance(part, dict) for item in part.items()]


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
        return storage_of(_with_storage(tensor))
    except (NotImplementedError, RuntimeError):  # opaque and wrapped tensors
        return 0


def _with_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a sparse or ragged tensor, any other tensor itself."""
    if tensor.layout is torch.strided:
        return tensor
    return stored_values(tensor) if tensor.layout is torch.sparse_coo else tensor.values()
