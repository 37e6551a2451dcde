"""A model's state as a safetensors file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rankfold.errors import RankfoldError
from rankfold.storage.file_formats import reader_of
from rankfold.storage.safetensors_header import read_header
from rankfold.storage.state_checks import check_alike, renamed
from rankfold_torch.layers.low_rank_sequential import LowRankSequential
from rankfold_torch.meta_tensors import materialise
from rankfold_torch.offloading import check_not_offloaded, state_of
from rankfold_torch.pickle_reader import read_state


def save_weights(model: nn.Module, file: Path) -> None:
    """Write every parameter and buffer; tensors that share memory are written once.

    Raises:
        RankfoldError: the state holds something other than dense tensors, or that of adapters.
        OSError: the file cannot be written.
    """
    check_merged(model)
    kept, _ = _distinct(model)
    taken: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in kept.items():
        # `save_file` refuses tensors that share a storage. Exact repetitions have been dropped;
        # what overlaps in part (views of one buffer) is cloned, and comes back as tensors of their
        # own.
        dense = tensor.detach().contiguous()
        memory = dense.untyped_storage().data_ptr()
        tensors[name] = dense.clone() if memory in taken else dense
        taken.add(memory)
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        # All that safetensors can fail on here is writing: layouts and ties have been seen to.
        raise OSError(str(error)) from error


def check_merged(model: nn.Module) -> None:
    """Check that no adapters of peft are on the stages of chains: nobody would know their names.

    Raises:
        RankfoldError: one is.
    """
    for path, module in model.named_modules():
        if isinstance(module, LowRankSequential):
            for name, stage in module.named_children():
                # By name: peft need not be installed.
                if type(stage).__module__.startswith("peft."):
                    raise RankfoldError(
                        f"stage {f'{path}.{name}'!r} has an adapter of peft, under whose names it "
                        "would not be loaded: save what merge_and_unload() gives, or save before "
                        "get_peft_model() and the adapters by save_pretrained() of the peft model"
                    )


def load_weights(
    model: nn.Module, file: Path, *more: Path, names: Mapping[str, str] | None = None
) -> None:
    """Fill a model from safetensors files, after checking every name, shape and dtype.

    A file of `torch.save` is read with `weights_only=True`. Names may have what wrappers of the
    model add, on either side. What is on the meta device gets its values on the CPU.

    Args:
        model: to fill.
        file: of tensors.
        more: further files.
        names: of the model for names in the files; others are as they are.

    Raises:
        RankfoldError: the file is damaged or does not fit the model, which is then unchanged; it
            is offloaded; or it does not take the values, because it ties what the file does not.
    """
    check_not_offloaded(model, "load into a model without offload, then dispatch it")
    stored: dict[str, torch.Tensor] = {}
    for part in (file, *more):
        stored |= {(names or {}).get(name, name): value for name, value in _read(part).items()}
    # The whole state is checked before any value is written, so that a misfit leaves the model as
    # it was. `materialise` comes after the checks for the same reason, and makes new tensors, so
    # the state is read again.
    kept, aliases = _distinct(model, valueless=True)
    tensors = renamed(file, stored, kept, aliases)
    state = model.state_dict()
    for name, tensor in tensors.items():
        check_alike(file, name, _layout(tensor), _layout(state[name]))
    materialise(model)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = state[name]
            strides = zip(value.stride(), value.shape, strict=True)
            # A stride of 0 along an axis of more than one element means that elements share memory:
            # writing there is an error in PyTorch.
            if all(step or size < 2 for step, size in strides):
                value.copy_(tensor)
            else:  # an expanded tensor has no memory of its own to copy into
                owner, _, part_name = name.rpartition(".")
                getattr(model.get_submodule(owner), part_name).data = tensor.to(value.device)
    # `copy_` into a copy changes nothing in the model, and tied tensors that the file does not tie
    # take the values of the last name. Neither raises; only reading back shows it.
    filled = model.state_dict()
    for name, tensor in tensors.items():
        if not _same_bytes(filled[name], tensor):
            raise RankfoldError(
                f"{str(file)!r}: {name!r} of the model does not hold what was stored: it shares "
                "its memory with another tensor of the model, or its state_dict gives copies"
            )


def _read(file: Path) -> dict[str, torch.Tensor]:
    if reader_of(file) is not None:
        return read_state(file).tensors
    read_header(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, KeyError) as error:  # a type that this PyTorch has not
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None


def _layout(tensor: torch.Tensor) -> tuple[object, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Bytes, not values: NaN equals itself, and 0.0 differs from -0.0.
    a, b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def _has_memory(tensor: torch.Tensor) -> bool:
    """Return whether the values of a tensor lie in its own storage: those of wrappers do not."""
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:  # also where a subclass has no storage at all
        return False
    return True


def _distinct(
    model: nn.Module, *, valueless: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Return the state without repetitions, and the further names of each tensor kept.

    Args:
        model: whose state it is.
        valueless: whether tensors on the meta device are in order.
    """
    kept: dict[str, torch.Tensor] = {}
    aliases: dict[str, list[str]] = {}
    owners: dict[tuple[object, ...], str] = {}
    state = model.state_dict(keep_vars=True) if valueless else state_of(model)
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise RankfoldError(f"{name!r} of the model's state is no dense tensor; remove it")
        if tensor.is_meta and not valueless:
            raise RankfoldError(f"{name!r} is on the meta device: it has no values; see to_empty()")
        if not _has_memory(tensor):
            raise RankfoldError(
                f"{name!r} of the model's state is a {type(tensor).__name__} without memory of its "
                "own, as sharded and quantized weights are: give an unsharded model (its state by "
                "get_model_state_dict with full_state_dict=True), or save before quantizing"
            )
        # Two names are one tensor where storage, place, shape, strides and dtype agree. Tensors on
        # the meta device all have the pointer 0, so their identity stands for it: `keep_vars` has
        # made `state_dict` give the parameters themselves and not detached copies.
        key: tuple[object, ...] = (
            id(tensor) if tensor.is_meta else 0,
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        # Empty tensors have the pointer 0 as well, without being tied.
        if tensor.numel() and key in owners:
            aliases[owners[key]].append(name)
            continue
        owners[key] = name
        kept[name] = tensor
        aliases[name] = []
    return kept, aliases
