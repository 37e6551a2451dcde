"""A dispatch mode sees every operation, and loads no compiler for it."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from rankfold_torch.operation_mode import OperationMode


def mode_class() -> type[OperationMode]:
    class Lists(OperationMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    return Lists


def test_operations_inside_are_seen_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    x = torch.arange(3.0)
    with mode_class()() as mode:
        x.exp().add(1)
    x.sin()
    assert mode.names == ["exp", "add"]  # type: ignore[attr-defined]  # of the class above
    assert "torch._dynamo" not in sys.modules


@pytest.mark.parametrize("loaded", [False, True])
def test_the_wrapper_is_put_on_where_the_compiler_is_loaded(
    loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch._dynamo", ModuleType("torch._dynamo"))
    kind = mode_class()
    kind()
    once = kind.__torch_dispatch__
    kind()
    assert hasattr(once, "__wrapped__") == loaded
    assert kind.__torch_dispatch__ is once  # wrappers do not pile up
