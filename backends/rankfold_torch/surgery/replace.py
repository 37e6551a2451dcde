"""Other modules in place of layers of a model: in a copy, or in the model itself at one stroke."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import nn

from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.state.transaction import Changes
from rankfold_torch.layers.parameter_layers import Factors, empty, parameter_at, prepare, put
from rankfold_torch.surgery.check_run import CheckRun, Run
from rankfold_torch.surgery.copies import copied
from rankfold_torch.surgery.exchange import exchange
from rankfold_torch.surgery.hooked_modules import HookedModules
from rankfold_torch.surgery.stale_layers import holders, identity

New: TypeAlias = nn.Module | nn.Parameter | Factors
"""Module, or values or factors of a parameter, that takes the place of a layer."""
Left: TypeAlias = dict[str, str]
"""Reasons for layers that must be left alone, by path."""


def replaced(
    model: nn.Module, new: Mapping[str, New], *, inplace: bool, run: Run | None = None
) -> tuple[nn.Module, Left]:
    """Swap layers by identity, parameters by name; see `rankfold.adapters.base.Checked`.

    Args:
        model: the model.
        new: by path, what takes the place of a layer.
        inplace: change the model itself, all at once.
        run: what was seen when the model ran; the result is then run, too.
    """
    modules = {path: item for path, item in new.items() if isinstance(item, nn.Module)}
    parameters = {path: item for path, item in new.items() if not isinstance(item, nn.Module)}
    # Copies made under inference mode would be inference tensors, which can never be trained.
    with torch.inference_mode(mode=False):
        hooked = HookedModules(model, modules, inplace=inplace)
        return (_changed if inplace else _copied)(model, hooked, parameters, run)


def _copied(
    model: nn.Module,
    hooked: HookedModules,
    parameters: Mapping[str, Factors | nn.Parameter],
    run: Run | None,
) -> tuple[nn.Module, Left]:
    """Return a copy with modules in place of layers, which are never copied themselves."""
    modules = hooked.modules
    old = {path: model.get_submodule(path) for path in modules}
    tensors = _tensors(model, old, parameters)
    # `deepcopy` takes what the memo has for an object's id in place of a copy. So replacements get
    # into the copy wherever the layer stood, and the large weights are never copied.
    memo: dict[int, Any] = {id(old[path]): module for path, module in modules.items()}
    replaced_tensors = _tensors_at(model, parameters)
    # A parameter is replaced after the copy; until then a shell of its shape stands there.
    memo |= {id(tensor): empty(tensor) for tensor in replaced_tensors.values()}
    hooked.seed(memo)
    small = copied(model, memo)
    for path, item in parameters.items():
        owner, _, name = path.rpartition(".")
        put(small.get_submodule(owner), name, item)
    # Modules that the copy shares with the model (a class whose copy is the object itself) are
    # meant to be shared. All others of the model should be gone.
    in_small = {id(module) for module in small.modules()}
    gone = {path: module for path, module in model.named_modules() if id(module) not in in_small}
    _check_apart(small, gone, modules)
    left = {
        path: "what holds it gives no copy of itself when it is copied"
        for path, module in modules.items()
        if id(module) not in in_small
    }
    # Something besides the modules that holds a weight gets a copy of it in the copied model, with
    # the values of before the compression.
    left |= _kept(model, tensors, old)  # whose copies would be values of before
    if run is None or left:
        return small, left
    check = CheckRun(model, small, modules, old, replaced_tensors, run, nullcontext)
    left = check.left(gone)
    if check.called:
        raise RankfoldError(
            f"a copy of the model goes on calling the model's own {check.called[0]!r}, which "
            "something holds that is not copied with it; pass inplace=True"
        )
    return small, left


def _changed(
    model: nn.Module,
    hooked: HookedModules,
    parameters: Mapping[str, Factors | nn.Parameter],
    run: Run | None,
) -> tuple[nn.Module, Left]:
    """Change the model itself; take that back where something replaced is still at work."""
    modules = hooked.modules
    # No other object can take the place of the one that the caller holds.
    if "" in modules:
        raise RankfoldError("a model that is a single layer cannot be replaced in place")
    old = {path: model.get_submodule(path) for path in modules}
    targets = {id(layer): path for path, layer in old.items()}
    targets |= _tensors(model, old, parameters)
    # All changes are prepared on an unchanged model and then made at once. From there on every way
    # out either leaves them made or takes them back.
    changes = Changes()
    for owner, paths in groupby(sorted(parameters), lambda path: path.rpartition(".")[0]):
        items = {path.rpartition(".")[2]: parameters[path] for path in paths}
        prepare(model.get_submodule(owner), items, changes)
    exchange(model, {id(old[path]): module for path, module in modules.items()}, changes)
    hooked.prepare(changes)
    replaced_tensors = _tensors_at(model, parameters)
    try:
        changes.make()
    except Exception as error:  # whatever a container of the model raises
        let_through(error)
        raise RankfoldError(
            f"the model cannot be changed ({error}); leave inplace= out to have a copy"
        ) from error
    try:
        # Looked for in the changed model: what leads to a layer now, the exchange could not reach.
        left = _kept(model, targets, modules)
        if run is not None and not left:
            undone = partial(_taken_back, changes)
            if hooked.overwrites:  # the layers compute with values of what replaces them
                run = replace(run, outputs=None)
            check = CheckRun(model, model, modules, old, replaced_tensors, run, undone)
            left = check.left(old)
            left |= dict.fromkeys(check.called, "something holds it besides and goes on calling it")
    except BaseException:
        changes.take_back()
        raise
    if left:
        changes.take_back()
    else:
        hooked.drop()
    return model, left


@contextmanager
def _taken_back(changes: Changes) -> Iterator[None]:
    """Have the model as it was inside."""
    changes.take_back()
    yield
    changes.make()  # where nothing was raised, else they stay taken back


def _check_apart(
    small: nn.Module, gone: Mapping[str, nn.Module], new: Mapping[str, nn.Module]
) -> None:
    """Check that a copy does not lead to what it is a copy of.

    Raises:
        RankfoldError: it does.
    """
    # Tensors that both hold on purpose are no sign of a copy that leads back.
    shared = {identity(tensor) for tensor in small.parameters()}
    names = {id(module): path for path, module in gone.items()}
    for path, module in gone.items():
        for name, tensor in module.named_parameters(prefix=path, recurse=False):
            if identity(tensor) not in shared:
                names[identity(tensor)] = name
    # The first one is enough for the error.
    for target, word in holders(small, names, new.values()).items():
        raise RankfoldError(
            f"{word} of the model holds the model's {names[target] or 'own self'!r} by "
            "closure, weak reference or alike, which a copy would go on using; pass inplace=True"
        )


def _kept(
    result: nn.Module, targets: Mapping[int, str], new: Mapping[str, nn.Module]
) -> dict[str, str]:
    """Return by path why layers must be left alone, as something still holds their parts."""
    return {
        targets[target]: f"it is also held by {word}, where no other can take its place"
        for target, word in holders(result, targets, new.values()).items()
    }


def _tensors_at(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters at those of the paths where they are no products of factors."""
    layers = {path: parameter_at(model, path) for path in paths}
    return {path: layer.tensor for path, layer in layers.items() if layer is not None}


def _tensors(
    model: nn.Module, layers: Mapping[str, nn.Module], parameters: Iterable[str]
) -> dict[int, str]:
    """Return the paths of layers by the identities of the parameters that are replaced."""
    owners = {identity(t): path for path, layer in layers.items() for t in layer.parameters()}
    owners |= {identity(tensor): path for path, tensor in _tensors_at(model, parameters).items()}
    return owners


def whole(result: tuple[nn.Module, Mapping[str, str]]) -> nn.Module:
    """Return the model where every layer was replaced; else raise the first reason."""
    model, left = result
    for path, reason in left.items():
        raise RankfoldError(f"layer {path!r} cannot be replaced: {reason}")
    return model
