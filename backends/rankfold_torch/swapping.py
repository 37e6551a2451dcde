"""Other modules in place of layers of a model, in a copy or in the model itself."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from rankfold.errors import RankfoldError
from rankfold.faults import told
from rankfold_torch.parameters import Factors, empty, held_at, put

New: TypeAlias = nn.Module | nn.Parameter | Factors
"""What takes the place of a layer: a module, or the values or factors of a parameter."""


def replaced(model: nn.Module, new: Mapping[str, New], *, inplace: bool) -> nn.Module:
    """Swaps layers by identity, parameters by name; see `rankfold.contracts.Adapter`."""
    modules = {path: item for path, item in new.items() if isinstance(item, nn.Module)}
    parameters = {path: item for path, item in new.items() if not isinstance(item, nn.Module)}
    shells = {
        id(held.tensor): empty(held.tensor)
        for path in parameters
        if (held := held_at(model, path)) is not None
    }
    swapped = _swapped_modules(model, modules, shells, inplace=inplace)
    for path, item in parameters.items():
        owner, _, name = path.rpartition(".")
        put(swapped.get_submodule(owner), name, item)
    return swapped


def _swapped_modules(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    shells: Mapping[int, nn.Parameter],
    *,
    inplace: bool,
) -> nn.Module:
    """The model with other modules; a copy has shells in place of some parameters, by id."""
    new = {id(model.get_submodule(path)): module for path, module in modules.items()}
    if not inplace:
        _check_closures(model)
        memo: dict[int, Any] = {**new, **shells, **_computed(model)}
        try:
            copied: nn.Module = copy.deepcopy(model, memo)
        except Exception as error:  # whatever the copied attributes raise
            raise RankfoldError(
                f"the model cannot be copied ({told(error)}); pass inplace=True to change it itself"
            ) from error
        return copied
    if id(model) in new:
        raise RankfoldError("a model that is a single layer cannot be replaced in place")
    seen: set[int] = set()
    for owner in list(model.modules()):
        _swapped(vars(owner), new, seen)
    return model


def _check_closures(model: nn.Module) -> None:
    """Refuses to copy functions that hold a module of the model by closure: they would keep it."""
    own = {id(module) for module in model.modules()}
    for path, owner in model.named_modules():
        for name, value in vars(owner).items():
            if not inspect.isfunction(value):
                continue
            for held in inspect.getclosurevars(value).nonlocals.values():
                if id(held) in own:
                    where = f"{path}.{name}".lstrip(".")
                    raise RankfoldError(
                        f"the function {where!r} of the model holds one of its modules by closure, "
                        "which a copy would go on calling; pass inplace=True"
                    )


def _computed(model: nn.Module) -> dict[int, torch.Tensor]:
    """Copies of tensors with a history, which cannot be deep-copied; forward makes them anew."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }


def _swapped(value: Any, new: Mapping[int, nn.Module], seen: set[int]) -> Any:
    """A value with modules replaced by identity, in dicts, lists, tuples and sets within it too.

    Dicts and lists are changed in place; a tuple or a set that holds such a module is made anew.
    """
    if id(value) in new:
        return new[id(value)]
    if id(value) in seen or not isinstance(value, (dict, list, tuple, set)):
        return value
    seen.add(id(value))
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            changed = _swapped(item, new, seen)
            if changed is not item:
                value[key] = changed
        return value
    changed_items = [_swapped(item, new, seen) for item in value]
    if all(a is b for a, b in zip(changed_items, value, strict=True)):
        return value
    named = hasattr(value, "_fields")
    return type(value)(*changed_items) if named else type(value)(changed_items)
