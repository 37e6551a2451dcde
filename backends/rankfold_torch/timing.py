"""Median times of modules, measured in turns so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from rankfold.ops import Embedding, Extent, Linear, Op, channels
from rankfold_torch import tracing

_TURNS = (5, 15)
_WARM_UPS = 2
_SHORTEST = 1e-3
_MOST_REPEATS = 50
_LAYER_BUDGET = 0.3
_MODEL_BUDGET = 3.0


def seconds(
    layer: nn.Module, op: Op, modules: Sequence[nn.Module], extents: Sequence[Extent]
) -> tuple[float, ...]:
    """Median seconds of a layer and of modules in its place, one call per extent."""
    weight: Any = layer.weight
    inputs = [_input(op, extent, weight) for extent in extents]

    def passing(module: nn.Module) -> Callable[[], object]:
        return lambda: [module(x) for x in inputs]

    return _measured([layer, *modules], passing, _LAYER_BUDGET)


def model_seconds(models: Sequence[nn.Module], inputs: Any) -> tuple[float, ...]:
    """Median seconds of one forward pass of each model."""

    def passing(model: nn.Module) -> Callable[[], object]:
        return lambda: tracing.call(model, inputs)

    return _measured(models, passing, _MODEL_BUDGET)


def _measured(
    modules: Sequence[nn.Module],
    passing: Callable[[nn.Module], Callable[[], object]],
    budget: float,
) -> tuple[float, ...]:
    devices = {p.device for module in modules for p in module.parameters()}
    waited = [device for device in devices if device.type == "cuda"]
    with ExitStack() as stack:
        stack.enter_context(tracing.one_at_a_time)
        for module in modules:
            stack.enter_context(tracing.unchanged(module))
        stack.enter_context(torch.no_grad())
        passes = [passing(module) for module in modules]
        for one in passes:
            for _ in range(_WARM_UPS):
                _time(one, 1, waited)
        repeats = [_repeats(_time(one, 1, waited)) for one in passes]
        found: list[list[float]] = [[] for _ in passes]
        began = time.perf_counter()
        for turn in range(_TURNS[1]):
            if turn >= _TURNS[0] and time.perf_counter() - began > budget:
                break
            for one, times, often in zip(passes, found, repeats, strict=True):
                times.append(_time(one, often, waited))
    return tuple(statistics.median(times) for times in found)


def _repeats(once: float) -> int:
    return min(_MOST_REPEATS, max(1, round(_SHORTEST / max(once, 1e-9))))


def _time(one: Callable[[], object], often: int, waited: Sequence[torch.device]) -> float:
    for device in waited:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(often):
        one()
    for device in waited:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / often


def _input(op: Op, extent: Extent, weight: torch.Tensor) -> torch.Tensor:
    into, device = channels(op)[1], weight.device
    generator = torch.Generator(device).manual_seed(0)
    if isinstance(op, Embedding):
        return torch.randint(into, extent, generator=generator, device=device)
    shape = (*extent, into) if isinstance(op, Linear) else (extent[0], into, *extent[1:])
    x = torch.randn(shape, generator=generator, device=device).to(weight.dtype)
    if isinstance(op, Linear) or weight.is_contiguous():
        return x
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = layouts.get(weight.ndim)
    if layout is not None and weight.is_contiguous(memory_format=layout):
        return x.contiguous(memory_format=layout)
    return x
