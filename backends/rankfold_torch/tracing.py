"""One forward pass that records the extents of every layer's inputs and who reads its weight."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rankfold.contracts import Trace
from rankfold.errors import RankfoldError
from rankfold.ops import Extent, macs
from rankfold.restoring import settled
from rankfold_torch.changes import Hook, hooked, unchanged
from rankfold_torch.layers import CONVS, TRANSPOSED, sized
from rankfold_torch.watching import READS


@settled
def trace(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any) -> Trace:
    """Runs the model once in eval mode, without gradients, and leaves it as it was.

    Args:
        model: the model.
        layers: the layers to watch, by path.
        inputs: a tensor, a tuple or list (positional) or a mapping (keyword arguments).

    Raises:
        RankfoldError: the model fails on the inputs.
    """
    extents: dict[str, list[Extent]] = {path: [] for path in layers}
    watch = _Watch({id(module): path for path, module in layers.items()})
    with ExitStack() as stack:
        stack.enter_context(unchanged(model))
        stack.enter_context(torch.no_grad())
        hooks = [
            (module, Hook(_enter, watch, path), Hook(_leave, watch, extents[path]))
            for path, module in layers.items()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        stack.enter_context(hooked(hooks))
        stack.enter_context(watch.reading())
        try:
            call(model, inputs)
        except Exception as error:  # whatever the model raises on these inputs
            raise RankfoldError(
                f"inputs: the model fails on them with {type(error).__name__}: {error}"
            ) from error
    return Trace(
        {path: tuple(found) for path, found in extents.items()},
        watch.refusals,
        {path: _macs(layers[path], found) for path, found in extents.items()},
    )


def _macs(layer: nn.Module, extents: Iterable[Extent]) -> int:
    op = sized(layer)
    return 0 if op is None else sum(macs((op,), extent) for extent in extents)


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls a model with a tensor, a tuple or list (positional) or a mapping (keywords)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


class _Watch:
    """Records reads of a layer's weight or bias by anything but the layer itself."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        self.paths = paths
        self.refusals: dict[str, str] = {}
        self.running: list[nn.Module] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Watches attribute look-ups of modules; parameters are found by `__getattr__`."""
        thread = threading.get_ident()

        def watched(module: nn.Module, name: str) -> None:
            own = bool(self.running) and self.running[-1] is module
            if (
                not own
                and name in ("weight", "bias")
                and id(module) in self.paths
                and not torch.compiler.is_compiling()
                and threading.get_ident() == thread
            ):
                reason = f"its {name} is read from outside the layer"
                self.refusals.setdefault(self.paths[id(module)], reason)

        with READS.by(watched):
            yield


def _enter(
    watch: _Watch, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if len(args) + len(kwargs) > 1 or set(kwargs) - {"input"}:
        watch.refusals.setdefault(path, "it is called with more than its input")
    watch.running.append(module)


def _leave(
    watch: _Watch,
    extents: list[Extent],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    if watch.running and watch.running[-1] is module:
        watch.running.pop()
    x = args[0] if args else kwargs.get("input")
    if isinstance(x, torch.Tensor):
        extents.append(_extent(module, x))


def _extent(module: nn.Module, x: torch.Tensor) -> Extent:
    if isinstance(module, nn.Embedding):
        return tuple(x.shape)
    for axes in CONVS:
        if isinstance(module, (CONVS[axes], TRANSPOSED[axes])):
            batch = x.shape[0] if x.ndim == axes + 2 else 1
            return (batch, *x.shape[-axes:])
    return tuple(x.shape[:-1])
