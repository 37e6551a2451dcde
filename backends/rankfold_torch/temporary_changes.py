"""Context managers that hold hooks, modes or other values on a model for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

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
    """A hook of this package, told by its class from those of others.

    Copies do nothing: a model may copy a part of itself while it runs, and what the hook works for
    is neither the copy's nor fit to be copied.
    """

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _idle_hook, ()


def _idle_hook() -> Callable[..., None]:
    return _idle


def _idle(*arguments: Any, **options: Any) -> None:
    """Do nothing."""


@contextmanager
def recurrent_differentiable(model: nn.Module) -> Iterator[None]:
    """Let recurrent layers be differentiated in eval mode inside: cuDNN does it in training mode.

    Modes are put back by `unchanged`, in which this is entered.
    """
    recurrent = [(m, m.dropout) for m in model.modules() if isinstance(m, nn.RNNBase)]

    def undo() -> None:
        for module, dropout in recurrent:
            module.dropout = dropout

    with Restored(undo):
        for module, _ in recurrent:
            module.training, module.dropout = True, 0.0
        yield


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
