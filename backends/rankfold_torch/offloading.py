"""Hooks of Hugging Face accelerate, which bring inputs and weights to the device that computes.

Such a hook exchanges `forward` on the instance of a module. Where it offloads, the parameters are
on the meta device between two calls, and their values lie in the hook's `weights_map`: a dictionary
in memory, or an `OffloadedWeightsLoader`, which has a dictionary and an index of files.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankfold.errors import RankfoldError, Refused


@dataclass(frozen=True, eq=False)
class Store:
    """Values of the tensors that a hook has offloaded.

    Attributes:
        mapping: the dictionary or the loader, by names in the model that was dispatched.
        prefix: what these names begin with.
    """

    mapping: Any
    prefix: str

    @classmethod
    def of(cls, hook: Any) -> Store:
        """Return the store of a hook that offloads.

        Raises:
            Refused: it is none that is known.
        """
        mapping, prefix = hook.weights_map, ""
        known = sys.modules["accelerate.utils.offload"]
        while type(mapping) is known.PrefixedDataset:
            mapping, prefix = mapping.dataset, mapping.prefix + prefix
        if not isinstance(mapping, dict) and type(mapping) is not known.OffloadedWeightsLoader:
            raise Refused(
                f"accelerate reads its weight from a {type(mapping).__name__}, which is neither a "
                "dict nor an OffloadedWeightsLoader"
            )
        return cls(mapping, prefix)

    @property
    def memory(self) -> dict[str, torch.Tensor]:
        """Tensors in memory, by name."""
        tensors: dict[str, torch.Tensor] = getattr(self.mapping, "state_dict", self.mapping)
        return tensors

    @property
    def files(self) -> dict[str, Any]:
        """Entries of tensors in files, by name."""
        entries: dict[str, Any] = getattr(self.mapping, "index", {})
        return entries

    def source(self, name: str) -> torch.Tensor | Hashable:
        """Return where a tensor has its values: the tensor in memory, or a key of its file."""
        name = self.prefix + name
        if name in self.memory:
            return self.memory[name]
        entry = self.files.get(name, {})
        return entry.get("safetensors_file", id(self.mapping)), entry.get("weight_name", name)


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """Return accelerate's hooks on a module, in the order in which they run before its forward.

    Raises:
        Refused: one does something else than to move weights and inputs.
    """
    hook = vars(module).get("_hf_hook")
    if hook is None:
        return ()
    # Whoever has put it there has loaded accelerate; this package does not.
    known = sys.modules.get("accelerate.hooks")
    hooks = (hook,) if known is None or type(hook) is not known.SequentialHook else hook.hooks
    for each in hooks:
        # By exact class: one that is derived from it may do anything.
        if known is None or type(each) is not known.AlignDevicesHook:
            away = any(t is not None and t.is_meta for t in module._parameters.values())
            raise Refused(
                f"it has a hook of accelerate, {type(each).__name__}"
                f"{', and its weight is offloaded' if away else ''}: take all of them off with "
                "accelerate.hooks.remove_hook_from_module(model, recurse=True), or load the model "
                "without device_map and offload; compress, then dispatch the result"
            )
    return tuple(hooks)


def offloading(module: nn.Module) -> Any:
    """Return the hook that brings a module's parameters and takes them away; None without one."""
    try:
        hooks = hooks_of(module)
    except Refused:
        return None
    # Of several, as on a module that stands in two places, the last one's values are computed with.
    return next((hook for hook in reversed(hooks) if hook.offload), None)


def offloaded(module: nn.Module, hook: Any) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield owner, name there and name in the module of the tensors that a hook takes away."""
    inside = module.named_modules() if hook.place_submodules else [("", module)]
    for path, owner in inside:
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and tensor.is_meta:
                yield owner, name, f"{path}.{name}".lstrip(".")


def unhooked(module: nn.Module) -> nn.Module:
    """Return a module with the forward that it has without hooks: itself, or a shallow copy.

    Raises:
        Refused: a hook does something else than to move weights and inputs.
    """
    if not hooks_of(module):
        return module
    plain = copy.copy(module)
    state = vars(plain)
    forward = state.pop("_old_forward", None)
    for name in ("forward", "_hf_hook"):
        state.pop(name, None)
    # A forward that stood on the instance before is part of what the layer computes.
    if getattr(forward, "__func__", None) is not type(module).forward:
        state["forward"] = forward
    return plain


def loaded(module: nn.Module) -> nn.Module:
    """Return a module as it computes: unhooked, with the values that hooks bring.

    They are on the device that they are computed with on. Modules inside it are dealt with alike.

    Raises:
        Refused: a hook does something else than to move weights and inputs.
    """
    plain = unhooked(module)
    hook = offloading(module)
    if hook is not None:
        store = Store.of(hook)
        _check_folder(store, module)
        tensors: dict[str, Any] = {"_parameters": {}, "_buffers": {}}
        for kind in tensors:
            for name, tensor in vars(module)[kind].items():
                away = tensor is not None and tensor.is_meta
                tensors[kind][name] = _value(hook, name, tensor) if away else tensor
        # Registries of its own: those that the copy has are the module's.
        vars(plain).update(tensors)
    children = {n: c if c is None else loaded(c) for n, c in module._modules.items()}
    if any(child is not module._modules[name] for name, child in children.items()):
        plain = copy.copy(module) if plain is module else plain
        vars(plain)["_modules"] = children
    return plain


def brought(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return an input of a module on the device that its hooks bring it to."""
    try:
        hooks = hooks_of(module)
    except Refused:
        return x
    for hook in hooks:
        x = x if hook.execution_device is None else x.to(hook.execution_device)
    return x


def check_owners(model: nn.Module, path: str) -> None:
    """Check that the weights of a layer do not come and go with those of a module around it.

    Raises:
        Refused: they do.
    """
    parts = path.split(".")
    for depth in range(len(parts) if path else 0):
        owner = ".".join(parts[:depth])
        hook = offloading(model.get_submodule(owner))
        if hook is not None and hook.place_submodules:
            raise Refused(
                f"accelerate loads its weight together with all of {owner!r}: dispatch the model "
                "without preload_module_classes"
            )


def source(module: nn.Module, name: str) -> torch.Tensor | Hashable | None:
    """Return where an offloaded parameter has its values; None for one that is not offloaded.

    Either the tensor in memory, or a key that is equal for one tensor in a file.
    """
    hook = offloading(module)
    tensor = None if hook is None else module._parameters.get(name)
    if tensor is None or not tensor.is_meta:
        return None
    try:
        return Store.of(hook).source(name)
    except Refused:
        return None


def declared_ties(model: nn.Module) -> dict[tuple[int, str], tuple[nn.Module, str]]:
    """Return owner and name of the parameters that others are tied to, as transformers says.

    By id of the owner and name of the others. `disk_offload` writes a file for each of them, by
    which nothing tells that they are tied.
    """
    ties: dict[tuple[int, str], tuple[nn.Module, str]] = {}
    for module in model.modules():
        for other, origin in vars(module).get("all_tied_weights_keys", {}).items():
            (owner, _, name), (first, _, kept) = other.rpartition("."), origin.rpartition(".")
            with contextlib.suppress(AttributeError):  # of a module that has been taken out
                ties[id(module.get_submodule(owner)), name] = module.get_submodule(first), kept
    return ties


def is_tied(module: nn.Module, name: str) -> bool:
    """Return whether accelerate was told that other modules have an offloaded parameter, too."""
    hook = offloading(module)
    return hook is not None and name in hook.tied_params_names


def in_memory(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the values of offloaded parameters that are in memory."""
    for module in model.modules():
        for name in () if offloading(module) is None else module._parameters:
            value = source(module, name)
            if isinstance(value, torch.Tensor):
                yield value


def check_not_offloaded(model: nn.Module, remedy: str) -> None:
    """Check that a model has its values itself.

    Raises:
        RankfoldError: it is offloaded; names the module and the remedy.
    """
    for path, module in model.named_modules():
        hook = offloading(module)
        if hook is not None and any(offloaded(module, hook)):
            raise RankfoldError(f"accelerate offloads the weights of {path!r}: {remedy}")


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a model, with the values of what is offloaded in memory."""
    state = dict(model.state_dict())
    for path, module in model.named_modules(remove_duplicate=False):
        hook = offloading(module)
        for _, _, name in () if hook is None else offloaded(module, hook):
            state[f"{path}.{name}".lstrip(".")] = hook.weights_map[name]
    return state


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """Return the CUDA devices that a model's parameters are on or are brought to, sorted."""
    devices = {parameter.device for parameter in model.parameters()}
    for module in model.modules():
        hook = offloading(module)
        if hook is not None and hook.execution_device is not None:
            devices.add(torch.device(hook.execution_device))
    return sorted((device for device in devices if device.type == "cuda"), key=str)


def _check_folder(store: Store, module: nn.Module) -> None:
    """Check that there is a place for what takes the place of a layer whose weights are in files.

    Raises:
        Refused: they are in a checkpoint, and there is no folder for others.
    """
    in_files = any(f"{store.prefix}{name}" in store.files for name in module._parameters)
    if in_files and store.mapping.save_folder is None:
        raise Refused(
            "accelerate reads its weight from the checkpoint, and there is no folder for what "
            "would take its place: load the model with offload_folder="
        )


def _value(hook: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the value of a tensor that a hook has taken away."""
    value: torch.Tensor = hook.weights_map[name]
    device = value.device if hook.execution_device is None else hook.execution_device
    value = value.to(device=device, dtype=tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value
