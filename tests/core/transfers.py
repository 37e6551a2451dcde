"""A guard against transfers of large tensors to the host, for mathematics that is to stay away.

Tensors of the CPU stand for those of an accelerator: whatever would copy one from there counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

_WAYS = ("numpy", "__array__", "tolist", "cpu")


class TransferError(AssertionError):
    """A tensor came to the host that was to stay away."""


@contextmanager
def staying(most: int) -> Iterator[list[int]]:
    """Refuse transfers of more numbers than a limit inside; yields the sizes of the others."""
    sizes: list[int] = []

    def count(tensor: torch.Tensor) -> None:
        sizes.append(tensor.numel())
        if tensor.numel() > most:
            raise TransferError(f"{tuple(tensor.shape)} came to the host, {most} numbers may")

    with pytest.MonkeyPatch.context() as patched:
        for name in _WAYS:
            usual = getattr(torch.Tensor, name)

            def guarded(tensor: torch.Tensor, *args: Any, _usual: Any = usual, **kw: Any) -> Any:
                count(tensor)
                return _usual(tensor, *args, **kw)

            patched.setattr(torch.Tensor, name, guarded)
        usual_to = torch.Tensor.to

        def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            target = kwargs.get("device", args[0] if args else None)
            if target == "cpu" and isinstance(target, str):  # a device is that of another tensor
                count(tensor)
            return usual_to(tensor, *args, **kwargs)

        patched.setattr(torch.Tensor, "to", to)
        yield sizes
