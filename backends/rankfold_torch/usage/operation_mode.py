"""Modes that see every operation of a run, without PyTorch's compiler where nothing is compiled."""

from __future__ import annotations

import sys

from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import TorchDispatchMode


class OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """A dispatch mode whose own code is never compiled.

    PyTorch sees to that for every mode by a wrapper that loads its compiler when it sees the first
    operation, which takes a second. Where the compiler is not loaded nothing of the model is
    compiled, so the wrapper is put on only where it is.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        dispatch = type(self).__torch_dispatch__
        if "torch._dynamo" in sys.modules and not hasattr(dispatch, "__wrapped__"):
            wrapped = _disable_dynamo(dispatch, recursive=True)
            type(self).__torch_dispatch__ = wrapped  # type: ignore[method-assign]  # as torch does
