"""Modules in the places of layers that hooks of accelerate serve, under hooks like theirs.

Where a layer's weights are offloaded, those of what takes its place go to the same dictionary or
folder, by the names that they have in the model. Stores are changed as the model is: of a copy the
stores are copies without the layer's values; in place the new ones are added with the exchange, and
the layer's are dropped when it is certain.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import update_wrapper
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from rankfold.errors import RankfoldError
from rankfold.state.transaction import Changes
from rankfold_torch.offloading import Store, hooks_of

_MOVING = ("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")
"""Methods that `dispatch_model` exchanges on the model, so that they warn or raise."""


class HookedModules:
    """Modules that take the places of layers.

    Args:
        model: with the layers.
        new: by path, a module in a layer's place; it stays as it is.
        inplace: whether the model itself is to be changed.

    Attributes:
        modules: the same by path, under hooks where the layer has hooks.

    Raises:
        RankfoldError: a file cannot be written.
    """

    def __init__(self, model: nn.Module, new: Mapping[str, nn.Module], *, inplace: bool) -> None:
        self._inplace = inplace
        self._stores: dict[int, _Exchanged] = {}
        self.modules: dict[str, nn.Module] = {}
        for path, module in new.items():
            layer = model.get_submodule(path)
            hooks = hooks_of(layer)
            self.modules[path] = self._hooked(module, layer, hooks) if hooks else module

    def seed(self, memo: dict[int, Any]) -> None:
        """Add the stores of a copy of the model to a memo of `copy.deepcopy`."""
        for stores in self._stores.values():
            stores.fill(memo)
            memo[id(stores.before.mapping)] = stores.after.mapping

    @property
    def overwrites(self) -> bool:
        """Whether what is changed in place has new values where layers read theirs."""
        return self._inplace and any(
            stores.dropped & {*stores.memory, *stores.files} for stores in self._stores.values()
        )

    def prepare(self, changes: Changes) -> None:
        """Prepare that the stores of the model hold what the new modules need."""
        for stores in self._stores.values():
            _contents(stores.before, changes, stores.memory, stores.files, ())

    def drop(self) -> None:
        """Drop what layers needed that are gone."""
        changes = Changes()
        for stores in self._stores.values():
            gone = stores.dropped - {*stores.memory, *stores.files}
            _contents(stores.before, changes, {}, {}, gone)
        changes.make()

    def _hooked(self, module: nn.Module, layer: nn.Module, hooks: Sequence[Any]) -> nn.Module:
        """Return a module under hooks like those of a layer; it shares its tensors."""
        from accelerate.hooks import attach_align_device_hook

        twin = _twin(module)
        offloading = [hook for hook in hooks if hook.offload]
        likes = [_like(hook) for hook in hooks if not hook.offload]
        if offloading:
            likes.append(_like(offloading[-1]))
            likes[-1].weights_map = self._stored(twin, layer, offloading)
        _attach(twin, likes)
        for hook in likes:
            if hook.offload and not hook.place_submodules:
                # The one on the module serves the tensors that are its own.
                for name, child in twin.named_children():
                    attach_align_device_hook(
                        child,
                        execution_device=hook.execution_device,
                        offload=True,
                        weights_map=hook.weights_map,
                        offload_buffers=hook.offload_buffers,
                        module_name=name,
                        skip_keys=hook.skip_keys,
                    )
        return twin

    def _stored(self, module: nn.Module, layer: nn.Module, hooks: Sequence[Any]) -> Any:
        """Put the tensors of a module where a layer's are, and return the map of its hook."""
        from accelerate.utils import PrefixedDataset

        for hook in hooks:
            store = Store.of(hook)
            if id(store.mapping) not in self._stores:
                self._stores[id(store.mapping)] = _Exchanged.of(store, inplace=self._inplace)
            stores = self._stores[id(store.mapping)]
            stores.dropped |= {f"{store.prefix}{name}" for name in layer.state_dict()}
        tensors = {f"{store.prefix}{n}": t.detach() for n, t in module.state_dict().items()}
        if any(name in store.files for name in stores.dropped if name.startswith(store.prefix)):
            stores.files |= _written(tensors, Path(store.mapping.save_folder))
        else:
            # In the memory of the module that was given, where that is the CPU's.
            stores.memory |= {name: tensor.to("cpu") for name, tensor in tensors.items()}
        return PrefixedDataset(stores.after.mapping, store.prefix)


def aligned(module: nn.Module, layer: nn.Module) -> nn.Module:
    """Return a module that takes its inputs to where a layer's hooks take them."""
    hooks = [_like(hook) for hook in hooks_of(layer)]
    for hook in hooks:
        hook.offload = False
    return _attach(_twin(module), hooks) if hooks else module


def rebind(model: nn.Module, memo: Mapping[int, Any]) -> None:
    """Have methods that accelerate has put on modules of a model serve their copies in a copy.

    Args:
        model: the model.
        memo: by id of an object, its copy.
    """
    for module in model.modules():
        known = memo.get(id(module))
        for name in _MOVING if isinstance(known, nn.Module) and known is not module else ():
            method = vars(module).get(name)
            if vars(known).get(name) is method and isinstance(method, FunctionType):
                vars(known)[name] = _rebound(method, dict(memo))


@dataclass(eq=False)
class _Exchanged:
    """A store with what is added to it and what is dropped from it.

    Attributes:
        before: of the model.
        after: of the result: the same, or one that is to be filled.
        memory: added tensors in memory.
        files: added entries of files.
        dropped: names of what is dropped.
    """

    before: Store
    after: Store
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, store: Store, *, inplace: bool) -> _Exchanged:
        if inplace:
            return cls(store, store)
        if isinstance(store.mapping, dict):
            return cls(store, Store({}, ""))
        loader = copy.copy(store.mapping)
        loader.state_dict, loader.index = {}, {}
        return cls(store, Store(loader, ""))

    def fill(self, memo: dict[int, Any]) -> None:
        """Fill the store of a copy."""
        for name, tensor in self.before.memory.items():
            if name not in self.dropped:
                self.after.memory[name] = copy.deepcopy(tensor, memo)
        self.after.memory.update(self.memory)
        kept = {n: entry for n, entry in self.before.files.items() if n not in self.dropped}
        self.after.files.update(kept | self.files)
        if not isinstance(self.after.mapping, dict):
            self.after.mapping.all_keys = [*self.after.memory, *self.after.files]


class _File(str):
    """Path of a file that is removed with the last object that names it."""

    def __new__(cls, path: str) -> _File:
        file = super().__new__(cls, path)
        weakref.finalize(file, _remove, path, os.getpid())
        return file

    def __deepcopy__(self, memo: object) -> _File:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # another process has no say in it


def _remove(path: str, process: int) -> None:
    # A forked process has copies of all objects, and its end is not that of the file.
    if process == os.getpid():
        with contextlib.suppress(OSError):
            Path(path).unlink()


def _written(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    """Write tensors into a new file of a folder, and return the entries of an index."""
    try:
        # A name that no other file has: other compressions of the model may write there, too.
        handle, path = tempfile.mkstemp(".safetensors", "rankfold-", folder)
        os.close(handle)
        file = _File(path)
        save_file({n: t.cpu().contiguous().clone() for n, t in tensors.items()}, file)
    except (OSError, SafetensorError) as error:
        raise RankfoldError(
            f"offload folder {str(folder)!r}: the weights of a compressed layer cannot be written "
            f"({error})"
        ) from error
    return {
        name: {
            "safetensors_file": file,
            "weight_name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
        for name, tensor in tensors.items()
    }


def _twin(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its tensors."""
    # What is to take a layer's place may be put into several models, one after the other.
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _like(hook: Any) -> Any:
    """Return a hook that does what another one does, on another module."""
    like = copy.copy(hook)
    like.tied_params_map, like.tied_params_names = None, set()  # none of the weights is tied
    return like


def _attach(module: nn.Module, hooks: Sequence[Any]) -> nn.Module:
    from accelerate.hooks import SequentialHook, add_hook_to_module

    hook = hooks[0] if len(hooks) == 1 else SequentialHook(*hooks)
    hooked: nn.Module = add_hook_to_module(module, hook)
    return hooked


def _contents(
    store: Store,
    changes: Changes,
    memory: Mapping[str, torch.Tensor],
    files: Mapping[str, Any],
    gone: Collection[str],
) -> None:
    """Prepare that a store has more entries, and some no longer."""
    after = [
        {name: value for name, value in {**known, **more}.items() if name not in gone}
        for known, more in ((store.memory, memory), (store.files, files))
    ]
    changes.contents(store.memory, after[0])
    if not isinstance(store.mapping, dict):
        changes.contents(store.files, after[1])
        changes.attribute(store.mapping, "all_keys", [*after[0], *after[1]])


def _rebound(function: FunctionType, memo: dict[int, Any]) -> Callable[..., Any]:
    """Return a function that holds the copies of what another one holds by closure."""
    cells = function.__closure__ or ()
    copies = tuple(CellType(copy.deepcopy(cell.cell_contents, memo)) for cell in cells)
    code, name = function.__code__, function.__name__
    rebound = FunctionType(code, function.__globals__, name, function.__defaults__, copies)
    wrapped = copy.deepcopy(getattr(function, "__wrapped__", None), memo)
    return update_wrapper(rebound, function if wrapped is None else wrapped)
