"""Context managers that change a model for a while and put it back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankfold.state.restoration import Restored, Shared
from rankfold_torch.torch_internals import (
    leave_mode,
    read_mode_flags,
    remove_hooks,
    set_mode_flags,
)

ABSENT: Any = object()
"""Stands in for the value of an attribute that is not there."""


class Hook(partial[Any]):
    """A hook of this package, told by its class from those of others."""


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside.

    Modes, buffers, random states and whether gradients are taken are as before afterwards.
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
    # A buffer may be replaced by another tensor (then the registries are put back) or written to in
    # place, as running statistics and caches are (then its values are). Both are kept. Tensors hash
    # by identity, so a buffer that two modules share is cloned once.
    values = {
        buffer: buffer.detach().clone()
        for _, known in buffers
        for buffer in known.values()
        if buffer is not None and buffer.device.type != "meta"
    }
    devices = ["cpu", *{str(p.device) for p in model.parameters() if p.device.type == "cuda"}]

    def undo() -> None:
        for module, mode in modes:
            module.training = mode
        for module, known in buffers:
            _put_buffers(module, known)
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


def _put_buffers(module: nn.Module, known: Mapping[str, torch.Tensor | None]) -> None:
    """Put buffers back such that at no moment one is missing that was there."""
    # The dict is updated, not exchanged: `named_buffers` and others may hold it. A pop that finds
    # nothing is in order, since an interrupt may have come between on the first try.
    now = module._buffers
    now.update(known)
    for name in [name for name in now if name not in known]:
        now.pop(name, None)


def _put_value(buffer: torch.Tensor, value: torch.Tensor) -> None:
    if buffer.shape != value.shape:
        # `copy_` needs equal shapes. Assigning `.data` keeps the identity of the buffer, by which
        # views and ties know it.
        buffer.data = value
    # Written only where it differs: every write in place counts up the version of the tensor, and
    # autograd then refuses a graph of the user's that has saved it.
    elif not torch.equal(buffer, value):
        buffer.copy_(value)


def _random_states(devices: Sequence[str]) -> dict[str, torch.Tensor]:
    return {
        device: torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device)
        for device in devices
    }


def _set_random_states(states: Mapping[str, torch.Tensor]) -> None:
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


_randomness: Shared[str, torch.Tensor] = Shared(_set_random_states)


@contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Hook | None, Hook]]) -> Iterator[None]:
    """Hold hooks on modules inside: before their forward, where there is one, and after it."""

    def undo() -> None:
        for module, *pair in hooks:
            remove_hooks(module, pair)

    with Restored(undo):
        for module, before, after in hooks:
            if before is not None:
                module.register_forward_pre_hook(before, with_kwargs=True)
            # `always_call`: where forward raises, the hook has to know that the layer no longer
            # runs.
            module.register_forward_hook(after, with_kwargs=True, always_call=True)
        yield


@contextmanager
def dispatched(mode: TorchDispatchMode) -> Iterator[None]:
    """Enter a mode that sees every operation of this thread inside.

    PyTorch keeps its modes on a stack of the thread, and beside it flags of the whole process,
    which calls that overlap in several threads would put back in the wrong order.
    """
    with _mode_flags.kept(read_mode_flags), Restored(partial(leave_mode, mode)):
        mode.__enter__()  # type: ignore[no-untyped-call]  # torch's own
        yield


_mode_flags: Shared[str, bool] = Shared(set_mode_flags)


@contextmanager
def exchanged(
    places: Sequence[tuple[dict[str, Any], str]], values: Sequence[Any]
) -> Iterator[None]:
    """Hold other values in dictionaries inside; `put` may exchange them again meanwhile."""
    before = [known.get(name, ABSENT) for known, name in places]
    with Restored(lambda: put(places, before)):
        put(places, values)
        yield


def put(places: Sequence[tuple[dict[str, Any], str]], values: Sequence[Any]) -> None:
    """Set items of dictionaries; remove those that are to be `ABSENT`."""
    for (known, name), value in zip(places, values, strict=True):
        if value is ABSENT:
            known.pop(name, None)
        else:
            known[name] = value
