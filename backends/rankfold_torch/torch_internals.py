"""The parts of PyTorch beyond its public interface that the backend uses: why, and how undone.

`pyproject.toml` allows torch>=2.1 without an upper bound; where versions differ, a function says
how it tells them apart. `_parameters`, `_buffers` and `_modules` of `nn.Module`, which every
release so far has had, are read where they are needed. Functions from `is_traced` on only read:
nothing is to be undone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

_HOOK_STORES = (
    ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_hooks"),
    ("_forward_pre_hooks_with_kwargs", "_forward_pre_hooks"),
)
"""Attributes in which a module keeps its hooks; the last of each row holds the hook itself."""


def remove_hooks(module: nn.Module, hooks: Sequence[object]) -> None:
    """Remove forward hooks from a module by identity; those it does not have are passed over.

    The public handle of a hook exists only once `register_forward_hook` has returned. An interrupt
    just before that would leave a hook for which there is no handle. The hook itself is at hand all
    the time, so it is searched for in the stores. It is taken from the last store last: as long as
    it is there, a second call finds what an interrupted one has left.
    """
    identities = {id(hook) for hook in hooks if hook is not None}
    for stores in _HOOK_STORES:
        last = getattr(module, stores[-1])
        # The keys are listed first, as the loop removes entries. By identity: hooks are partials,
        # which may compare equal to one of somebody else.
        for key in [key for key, hook in last.items() if id(hook) in identities]:
            for store in stores:
                getattr(module, store).pop(key, None)


def leave_mode(mode: TorchDispatchMode) -> None:
    """Pop dispatch modes of this thread until a mode is no longer among them.

    `mode.__exit__` pops whatever is on top, and nothing says whether an interrupted `__enter__` got
    as far as pushing the mode. The stack itself says so.
    """
    stack = _python_dispatch._get_current_dispatch_mode_stack
    while any(entered is mode for entered in stack()):
        _python_dispatch._pop_mode()


def read_mode_flags() -> dict[str, bool]:
    """Return the flags of the process that say whether any dispatch mode is active.

    They are found by their prefix, as versions differ in how many there are.
    """
    # Through `vars`: these are globals of PyTorch's module, which modes assign when entered and
    # left. A name imported from there would keep the value of the time of import.
    values = vars(_python_dispatch)
    return {name: values[name] for name in values if name.startswith("_is_in_")}


def set_mode_flags(flags: Mapping[str, bool]) -> None:
    """Set flags as `read_mode_flags` returned them."""
    vars(_python_dispatch).update(flags)
    tell = getattr(_python_dispatch, "set_is_in_mode_without_ignore_compile_internals", None)
    if tell is not None:  # in newer versions its dispatcher has a copy of one of them
        tell(flags["_is_in_any_mode_without_ignore_compile_internals"])


def keep_from_compiler(mode: type[TorchDispatchMode]) -> None:
    """Keep the code of a dispatch mode from being compiled, where the compiler is loaded at all.

    This stays on the class: like PyTorch's own wrapper it changes nothing that the mode computes.
    """
    # PyTorch would wrap the method of every mode class, by importing torch._dynamo. `__wrapped__`
    # marks a method that has been wrapped, so that wrappers do not pile up.
    dispatch = mode.__torch_dispatch__
    if "torch._dynamo" in sys.modules and not hasattr(dispatch, "__wrapped__"):
        wrapped = _disable_dynamo(dispatch, recursive=True)
        mode.__torch_dispatch__ = wrapped  # type: ignore[method-assign]  # as torch does


def in_backward() -> bool:
    """Return whether this thread is inside a backward pass, which no public function tells."""
    return torch._C._current_graph_task_id() >= 0


def give_own_class(module: nn.Module) -> None:
    """Give a parametrized module a class that no other module shares.

    `torch.nn.utils.parametrize` changes the `__class__` of a module to a generated one and puts a
    property on it for each parameter. A deep copy shares that class with its original: adding or
    removing a parametrization of the one would change how the other reads its parameter. The new
    class has the same name, bases and members, so `type_before_parametrizations` and pickling see
    no difference. It is not undone here: callers do this to a shadow or a copy, and put the
    `__class__` of the user's module back themselves.
    """
    kind = type(module)
    # These two are descriptors that `type` makes for each class; copies of them would refer to the
    # old one and fail on instances of the new one.
    members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)


def is_traced() -> bool:
    """Return whether `torch.jit.trace` or an exporter built on it runs, which no function tells."""
    return torch._C._get_tracing_state() is not None


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to in place: autograd's counter, which is not public.

    Whether a tensor still has the values that were seen could else only be told from a copy.
    """
    return tensor._version


def storage_of(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage, the same for all views of it.

    `data_ptr` would not do: it is 0 for tensors without memory, and differs between views.
    """
    return int(tensor.untyped_storage()._cdata)


def stored_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values that a sparse COO tensor holds, without a copy.

    `values` asks for a tensor that is coalesced, and `coalesce` copies.
    """
    return tensor._values()


def schema_of(operation: Any) -> Any:
    """Return the schema of an operation: arguments, and which of them are written to.

    Dispatch modes get the operation alone; its public parts do not say that.
    """
    return operation._schema


def padding_at_construction(module: nn.Module) -> tuple[int, ...]:
    """Return the padding of a convolution with a padding mode, (low, high) from the last axis on.

    It is what `_conv_forward` reads in these modes; `padding` has no effect on it afterwards.
    """
    amounts: Any = module._reversed_padding_repeated_twice
    return tuple(amounts)


def unsaved_buffers(module: nn.Module) -> set[str]:
    """Return the names of buffers that the state of a module leaves out (`persistent=False`)."""
    return set(module._non_persistent_buffers_set)


def forward_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks that run before and after `forward`; registered ones cannot be listed."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
