"""Dispatch modes that do not load PyTorch's compiler where nothing is compiled."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

from rankfold_torch.torch_internals import keep_from_compiler


class OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """A dispatch mode whose own code is never compiled.

    PyTorch sees to that for every mode by a wrapper that loads its compiler when it sees the first
    operation, which takes a second. Where the compiler is not loaded nothing of the model is
    compiled, so the wrapper is put on only where it is.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Read when a subclass is defined: PyTorch then leaves `__torch_dispatch__` as it is.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        keep_from_compiler(type(self))
