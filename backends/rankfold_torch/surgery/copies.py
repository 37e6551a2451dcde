"""Copies of modules that hold what the modules hold, in spite of a `__deepcopy__` that loses it.

`copy.deepcopy` leaves it to a class how it is copied. Some classes make themselves anew and lose
what a module is besides its weights (a GraphModule of torch.fx comes back in training mode and
without its forward hooks), others lose the weights, too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold_torch.surgery.hooked_modules import rebind

_ATTRIBUTES = tuple(vars(nn.Module()))
"""Attributes of every module: its mode, registries and hooks."""


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy of a model.

    Args:
        model: the model.
        memo: by id of an object, what stands in the copy for it; filled on the way.

    Raises:
        RankfoldError: something that the model holds cannot be copied.
    """
    # What stands in for layers is in the copy as it is, and is not to be completed like a copy.
    others = set(memo)
    # A class that makes itself anew may set the mode of what it holds. Replacements are among that,
    # and keep the mode that they were built in.
    modes = [
        (module, module.training)
        for root in memo.values()
        if isinstance(root, nn.Module)
        for module in root.modules()
    ]
    # `copy.deepcopy` raises for tensors that are no leaves of autograd. They are plain attributes
    # (a weight that a pre-hook computes, a last output), which the next forward makes anew.
    memo.update(_computed(model))
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
        rebind(model, memo)
        _complete(model, copied, memo, others)
    except Exception as error:  # whatever the copied attributes raise
        let_through(error)
        raise RankfoldError(
            f"the model cannot be copied ({told(error)}); pass inplace=True to change it itself"
        ) from error
    for module, mode in modes:
        module.training = mode
    return copied


def _complete(module: nn.Module, copied: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Give a copy what the module holds, where the way its class is copied lost it.

    A class whose copies are the very same object, or of another class, wants that.
    """
    # By name: a parametrized module and a GraphModule have a class of their own for each instance.
    if copied is module or type(copied).__qualname__ != type(module).__qualname__:
        return
    if id(module) in seen or isinstance(module, torch.jit.ScriptModule):
        return
    seen.add(id(module))
    for name in _ATTRIBUTES:
        if name in vars(module):
            vars(copied)[name] = copy.deepcopy(vars(module)[name], memo)  # known where not lost
    # Where the class has copied its `__dict__`, the memo has the copy of it, with entries that the
    # class may then have dropped.
    for name, value in memo.get(id(vars(module)), {}).items():
        vars(copied).setdefault(name, value)
    for name, child in module._modules.items():
        if child is not None:
            _complete(child, copied._modules[name], memo, seen)


def _computed(model: nn.Module) -> dict[int, torch.Tensor]:
    """Return copies of tensors with a history, which cannot be deep-copied, by identity."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
