"""A model's state as a safetensors file, and back."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rankfold.errors import RankfoldError
from rankfold_torch.pickled import state_dict

_SHOWN = 5


def save_weights(model: nn.Module, file: Path) -> None:
    """Writes every parameter and buffer; tensors that share memory are written once.

    Raises:
        RankfoldError: the state holds something other than dense tensors.
        OSError: the file cannot be written.
    """
    kept, _ = _distinct(model)
    taken: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in kept.items():
        dense = tensor.detach().contiguous()
        memory = dense.untyped_storage().data_ptr()
        tensors[name] = dense.clone() if memory in taken else dense
        taken.add(memory)
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load_weights(model: nn.Module, file: Path, *more: Path) -> None:
    """Fills a model from safetensors files, after checking every name, shape and dtype.

    A `.pt` or `.pth` file of a plain state dict is read with `weights_only=True`.

    Raises:
        RankfoldError: the file is damaged or does not fit the model, which is then unchanged; or
            the model does not take the values, because it ties what the file does not.
    """
    tensors: dict[str, torch.Tensor] = {}
    for one in (file, *more):
        tensors.update(_read(one))
    kept, aliases = _distinct(model)
    missing = sorted(
        name
        for name in kept
        if name not in tensors and not any(a in tensors for a in aliases[name])
    )
    known = set(kept) | {alias for names in aliases.values() for alias in names}
    unknown = sorted(set(tensors) - known)
    if missing or unknown:
        raise RankfoldError(
            f"{str(file)!r} does not fit the model: it lacks {_some(missing)} and has "
            f"{_some(unknown)} that the model has not"
        )
    state = model.state_dict()
    for name, tensor in tensors.items():
        own = state[name]
        if own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise RankfoldError(
                f"{str(file)!r}: {name!r} is {tensor.dtype} {tuple(tensor.shape)}, the model's is "
                f"{own.dtype} {tuple(own.shape)}; make the model of that shape and dtype first"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own = state[name]
            if all(step or size < 2 for step, size in zip(own.stride(), own.shape, strict=True)):
                own.copy_(tensor)
            else:  # an expanded tensor has no memory of its own to copy into
                owner, _, part = name.rpartition(".")
                getattr(model.get_submodule(owner), part).data = tensor.to(own.device)
    filled = model.state_dict()
    for name, tensor in tensors.items():
        if not _same_bytes(filled[name], tensor):
            raise RankfoldError(
                f"{str(file)!r}: {name!r} of the model does not hold what was stored: it shares "
                "its memory with another tensor of the model, or its state_dict gives copies"
            )


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix in (".pt", ".pth", ".bin"):
        return state_dict(file)
    try:
        with safe_open(file, framework="pt") as stored:
            del stored
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def _distinct(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """The state without repetitions, and the further names of each tensor kept."""
    kept: dict[str, torch.Tensor] = {}
    aliases: dict[str, list[str]] = {}
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise RankfoldError(f"{name!r} of the model's state is no dense tensor; remove it")
        if tensor.device.type == "meta":
            raise RankfoldError(f"{name!r} is on the meta device: it has no values; see to_empty()")
        key: tuple[object, ...] = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        if tensor.numel() and key in owners:
            aliases[owners[key]].append(name)
            continue
        owners[key] = name
        kept[name] = tensor
        aliases[name] = []
    return kept, aliases


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
