"""Median times of modules, at the dtype, device and memory format they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from rankfold.adapters import timing
from rankfold.ops import Embedding, Extent, Linear, Op, channels
from rankfold.state.restoration import settled
from rankfold_torch import tracing
from rankfold_torch.model_state import unchanged
from rankfold_torch.offloading import cuda_devices


def seconds(
    layer: nn.Module, op: Op, modules: Sequence[nn.Module | None], extents: Sequence[Extent]
) -> tuple[float, ...]:
    """Return median seconds of a layer and of modules in its place, one call per extent.

    Args:
        layer: as it is in the model.
        op: the layer.
        modules: in its place; None stands for one that cannot be built, which takes forever.
        extents: of its inputs.
    """
    weight: Any = layer.weight
    inputs = [_input(op, extent, weight) for extent in extents]

    def passing(module: nn.Module) -> Callable[[], object]:
        return lambda: [module(x) for x in inputs]

    return _measured([layer, *modules], passing, timing.LAYER)


def model_seconds(models: Sequence[nn.Module], inputs: Any) -> tuple[float, ...]:
    """Return median seconds of one forward pass of each model."""

    def passing(model: nn.Module) -> Callable[[], object]:
        return lambda: tracing.call(model, inputs)

    return _measured(models, passing, timing.MODEL)


@settled
def _measured(
    modules: Sequence[nn.Module | None],
    passing: Callable[[nn.Module], Callable[[], object]],
    budget: float,
) -> tuple[float, ...]:
    whole = [module for module in modules if module is not None]
    # CUDA calls return before the work is done: without waiting, the clock would measure launches.
    devices = {device for module in whole for device in cuda_devices(module)}

    def wait(result: object) -> None:
        for device in devices:
            torch.cuda.synchronize(device)

    with ExitStack() as stack:
        # Eval mode and no gradients, as in deployment: training would add work to some layers.
        for module in whole:
            stack.enter_context(unchanged(module))
        stack.enter_context(torch.no_grad())
        passes = [None if module is None else passing(module) for module in modules]
        return timing.medians(passes, budget, wait)


def _input(op: Op, extent: Extent, weight: torch.Tensor) -> torch.Tensor:
    # Drawn on the device by a seeded generator, so that all modules see the same inputs and the
    # default generators of the process do not move.
    into, device = channels(op)[1], weight.device
    generator = torch.Generator(device).manual_seed(0)
    if isinstance(op, Embedding):
        return torch.randint(into, extent, generator=generator, device=device)
    shape = (*extent, into) if isinstance(op, Linear) else (extent[0], into, *extent[1:])
    x = torch.randn(shape, generator=generator, device=device).to(weight.dtype)
    if isinstance(op, Linear) or weight.is_contiguous():
        return x
    # A channels-last weight with a contiguous input would be timed with a conversion that does not
    # occur in the model, where activations arrive channels last.
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = layouts.get(weight.ndim)
    if layout is not None and weight.is_contiguous(memory_format=layout):
        return x.contiguous(memory_format=layout)
    return x
