"""One forward pass: the extents of every layer's inputs, reads of its weight, and the outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from rankfold.adapters.base import Trace
from rankfold.calibration.input_mistakes import told_of
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.ops import Extent
from rankfold.state.restoration import settled
from rankfold_torch.layers.stock import CONVS, TRANSPOSED
from rankfold_torch.model_state import parameters_kept, unchanged
from rankfold_torch.temporary_changes import Hook, dispatched, hooked
from rankfold_torch.usage.output_layers import OutputLayers
from rankfold_torch.usage.weight_reads import WeightUses

TENSORS = "torch.from_numpy(array)"
"""What errors say to give in place of an array of NumPy."""


@settled
def trace(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any, keep: Callable[[Any], object]
) -> Trace:
    """Run the model once in eval mode, without gradients, and leave it as it was.

    Args:
        model: the model.
        layers: the layers to watch, by path.
        inputs: a tensor, a tuple or list (positional) or a mapping (keyword arguments).
        keep: takes the output, while buffers and parameters are as the run has left them.

    Raises:
        RankfoldError: the model fails on the inputs.
    """
    extents: dict[str, list[Extent]] = {path: [] for path in layers}
    # A scripted layer runs outside Python: hooks and changes of its attributes are not seen or not
    # possible. It is refused anyway, and only its extents are missing.
    eager = {p: m for p, m in layers.items() if not isinstance(m, torch.jit.ScriptModule)}
    uses = WeightUses(eager)
    output_layers = OutputLayers(model, inputs, layers)
    with ExitStack() as stack:
        stack.enter_context(unchanged(model))
        stack.enter_context(parameters_kept(model))
        stack.enter_context(torch.no_grad())
        hooks = [
            (
                module,
                Hook(_enter, uses, path),
                Hook(_leave, uses, extents[path], partial(output_layers.mark, path)),
            )
            for path, module in eager.items()
        ]
        # Both modes learn from the hooks which layer runs. The mode that is entered last sees an
        # operation first and passes it on to the other.
        stack.enter_context(hooked(hooks))
        stack.enter_context(uses.watching())
        stack.enter_context(dispatched(output_layers))
        try:
            output = call(model, inputs)
            # A weight that the model returns is read by the caller, without an operation that would
            # tell.
            uses.note(output)
        except Exception as error:  # whatever the model raises on these inputs
            let_through(error)
            raise RankfoldError(
                "inputs: the model fails on them with "
                f"{told_of(error, inputs, TENSORS)}{_hint(model, inputs)}"
            ) from error
        keep(output)
    return Trace(
        {path: tuple(calls) for path, calls in extents.items()},
        uses.refusals,
        {path: uses.macs.get(path, 0) for path in layers},
        output_layers.of(output),
        # Nothing is seen of what a scripted layer computes.
        frozenset(uses.uncounted | (layers.keys() - eager.keys())),
    )


def _hint(model: nn.Module, inputs: Any) -> str:
    """Return a hint on passing a list as one argument, "" where that cannot be what is wrong."""
    if not isinstance(inputs, (tuple, list)):
        return ""
    if not all(isinstance(item, torch.Tensor) for item in inputs):
        return ""
    if isinstance(inputs, tuple):
        try:
            # Where the arguments fit the signature, their number is not what went wrong. A list
            # gets the hint in any case: it may have been meant as one argument.
            inspect.signature(model.forward).bind(*inputs)
        except TypeError:
            pass
        except ValueError:  # a forward without a signature
            return ""
        else:
            return ""
    kind = type(inputs).__name__
    return (
        f"; a {kind} is taken as positional arguments, {len(inputs)} of them: for one argument "
        f"that is a {kind}, write inputs=({'[...]' if kind == 'list' else '(...)'},)"
    )


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a tensor, a tuple or list (positional) or a mapping (keywords)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def _enter(
    uses: WeightUses, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    # A Sequential in place of the layer takes one positional input. Further arguments (the
    # `output_size` of a transposed convolution, say) would have nowhere to go.
    if len(args) + len(kwargs) > 1 or set(kwargs) - {"input"}:
        uses.refusals.setdefault(path, "it is called with more than its input")
    uses.enter(path, module)


def _leave(
    uses: WeightUses,
    extents: list[Extent],
    mark: Callable[[Any], None],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    uses.leave(module)
    mark(output)
    # This runs after a failing forward, too (`always_call`): `leave` has to be called then, and the
    # input says all that is needed here.
    x = args[0] if args else kwargs.get("input")
    if isinstance(x, torch.Tensor):
        extents.append(_extent(module, x))


def _extent(module: nn.Module, x: torch.Tensor) -> Extent:
    if isinstance(module, nn.Embedding):
        return tuple(x.shape)
    for axes in CONVS:
        if isinstance(module, (CONVS[axes], TRANSPOSED[axes])):
            # PyTorch takes (channels, *spatial) without a batch axis as well.
            batch = x.shape[0] if x.ndim == axes + 2 else 1
            return (batch, *x.shape[-axes:])
    # Linear layers, and whatever a rule reads as one: the last axis is the features.
    return tuple(x.shape[:-1])
