"""The state of a model, put back as it was after whatever runs it.

That is modes, buffers such as BatchNorm's statistics, attributes, random states, and the values of
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from rankfold.state.random_states import process_states, set_process_states
from rankfold.state.restoration import Restored, Shared
from rankfold_torch.offloading import cuda_devices, in_memory
from rankfold_torch.operation_mode import OperationMode
from rankfold_torch.temporary_changes import dispatched
from rankfold_torch.torch_internals import schema_of

FRAMEWORK = frozenset(vars(nn.Module()))
"""Attributes that every module has: its mode and the registries, which are dealt with by name."""


Watching: TypeAlias = Callable[[], AbstractContextManager[None]]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside.

    Afterwards modes, buffers, other attributes, random states, whether gradients are taken, and
    which tensors are the parameters are as before. `parameters_kept` is for their values.
    """
    # All that `undo` needs is gathered before anything changes: modules that forward adds or drops
    # meanwhile do not matter then.
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    buffers = [
        (module, dict(module._buffers))
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    # A flag or a length says what a buffer or a parameter holds ("already rescaled", "made for 40
    # positions"): put back without the other, the two would contradict each other.
    attributes = [_Attributes(module) for module, _ in buffers if not _is_lazy(module)]
    # A buffer may be replaced by another tensor (then the registries are put back) or written to in
    # place, as running statistics and caches are (then its values are). Both are kept. Tensors hash
    # by identity, so a buffer that two modules share is cloned once.
    values = {
        buffer: buffer.detach().clone()
        for _, known in buffers
        for buffer in known.values()
        if buffer is not None and buffer.device.type != "meta"
    }
    devices = ["cpu", *map(str, cuda_devices(model))]

    def undo() -> None:
        for module, mode in modes:
            module.training = mode
        for module, known in buffers:
            _put_items(module._buffers, known)
        for known_attributes in attributes:
            known_attributes.put_back()
        with torch.no_grad():
            for buffer, value in values.items():
                _put_value(buffer, value)

    gradients = torch.is_grad_enabled()  # which `no_grad` sets back only if it gets to
    with ExitStack() as stack:
        stack.enter_context(_randomness.kept(partial(_random_states, devices)))
        stack.enter_context(Restored(partial(torch.set_grad_enabled, gradients)))
        stack.enter_context(Restored(undo))
        for module in modules:
            # Assigned, not by `eval()`: a model may override `train` to keep a part of itself in
            # training mode, or to do other work.
            module.training = False
        yield


@contextmanager
def parameters_kept(model: nn.Module) -> Iterator[Watching]:
    """Put the values of parameters back that operations inside write to in place.

    Yields a context in which another thread has to run the model for its writes to be seen.
    """
    # A copy of every parameter beforehand would double the memory of a model, for the few models
    # that write to any.
    before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    # By memory, as `.data` and views are other tensors; one memory may be of several.
    owners: dict[int, list[torch.Tensor]] = {}
    for parameter in (*model.parameters(), *in_memory(model)):
        if (key := _memory(parameter)) is not None:
            owners.setdefault(key, []).append(parameter)

    def undo() -> None:
        with torch.no_grad():
            for parameter, value in list(before.values()):
                _put_value(parameter, value)

    def watching() -> AbstractContextManager[None]:
        return dispatched(_Writes(owners, before))

    with Restored(undo), watching():
        yield watching


def _put_items(now: dict[Any, Any], known: Mapping[Any, Any]) -> None:
    """Put the items of a dictionary back such that at no moment one is missing that was there."""
    # The dict is updated, not exchanged: `named_buffers` and others may hold it. A pop that finds
    # nothing is in order, since an interrupt may have come between on the first try.
    now.update(known)
    for name in [name for name in now if name not in known]:
        now.pop(name, None)


def _is_lazy(module: nn.Module) -> bool:
    """True if the first call turns a module into one of another class, for good."""
    return isinstance(module, nn.modules.lazy.LazyModuleMixin)


class _Attributes:
    """Plain attributes of a module and the registries of its parameters and parts, as they were.

    Containers among the attributes are restored with the items they had: a cache is filled in
    place. What lies deeper is not looked at.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = dict(module._parameters)
        self._parts = dict(module._modules)  # some models make them at their first call
        self._plain = {k: v for k, v in vars(module).items() if k not in FRAMEWORK}
        self._items = [
            (value, value.copy())
            for value in self._plain.values()
            if type(value) in (dict, list, set)
        ]

    def put_back(self) -> None:
        """Put everything back, however often it is called."""
        _put_items(self._module._parameters, self._parameters)
        _put_items(self._module._modules, self._parts)
        now = vars(self._module)
        now.update(self._plain)
        for name in [k for k in now if k not in FRAMEWORK and k not in self._plain]:
            now.pop(name, None)
        for container, items in self._items:
            if isinstance(container, dict):
                _put_items(container, items)
            elif isinstance(container, list):
                container[:] = items
            else:
                container &= items
                container |= items


class _Writes(OperationMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """Mode that notes the values of parameters before the first operation that writes to them."""

    def __init__(
        self,
        owners: Mapping[int, Sequence[torch.Tensor]],
        before: dict[int, tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        super().__init__()
        self._owners = owners
        self._before = before

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        schema, options = schema_of(operation), kwargs or {}
        if schema.is_mutable:
            # By name: what an operation writes to may be given by keyword, as `out=` is.
            values = {a.name: x for a, x in zip(schema.arguments, args, strict=False)} | options
            for argument in schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._note(values.get(argument.name))
        return operation(*args, **options)

    def _note(self, value: Any) -> None:
        for written in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(written, torch.Tensor):
                for owner in self._owners.get(_memory(written) or 0, ()):
                    if id(owner) not in self._before:
                        self._before[id(owner)] = owner, owner.detach().clone()


def _memory(tensor: torch.Tensor) -> int | None:
    """Return the address of the memory of a tensor; None for one that has none of its own."""
    if tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, nn.Parameter):
        return None
    return tensor.untyped_storage().data_ptr() or None


def _put_value(buffer: torch.Tensor, value: torch.Tensor) -> None:
    if buffer.shape != value.shape:
        # `copy_` needs equal shapes. Assigning `.data` keeps the identity of the buffer, by which
        # views and ties know it.
        buffer.data = value
    # Written only where it differs: every write in place counts up the version of the tensor, and
    # autograd then refuses a graph of the user's that has saved it.
    elif not torch.equal(buffer, value):
        buffer.copy_(value)


def _random_states(devices: Sequence[str]) -> dict[str, Any]:
    return process_states() | {
        device: torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device)
        for device in devices
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    set_process_states(states)
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif device.startswith("cuda"):
            torch.cuda.set_rng_state(state, device)


_randomness: Shared[str, Any] = Shared(_set_random_states)
