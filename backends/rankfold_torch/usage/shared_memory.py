"""Storages of tensors, and whether two tensors share memory."""

from __future__ import annotations

import torch
from torch import nn


def storage(tensor: torch.Tensor) -> int:
    """Return a number that is equal for tensors that lie in the same storage."""
    if not _is_plain(tensor):
        return id(tensor)
    # Empty storages all have the pointer 0, and share nothing.
    return tensor.untyped_storage().data_ptr() or id(tensor)


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if two tensors of one storage share memory."""
    if a is b or not (_is_plain(a) and _is_plain(b)):
        return a is b
    # Spans of interleaved views (every other column, say) overlap though no element is shared. Such
    # a layer is refused without need, which is safe.
    (a_start, a_end), (b_start, b_end) = _span(a), _span(b)
    return a_start < b_end and b_start < a_end


def _is_plain(tensor: torch.Tensor) -> bool:
    if nn.parameter.is_lazy(tensor) or tensor.device.type == "meta":
        return False
    return type(tensor.data) is torch.Tensor and tensor.layout is torch.strided


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    first = int(tensor.storage_offset())
    last = first + sum(
        (int(n) - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True)
    )
    # In bytes: two views of one storage may have different dtypes.
    return first * tensor.element_size(), (last + 1) * tensor.element_size()
