"""Median times of layers and models.

Layers are measured as what XLA makes of them: one compiled function per layer or chain, channels
last, with depthwise stages in the form that the adapters give them. The layers of a stack are
measured side by side, as under vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rankfold.adapters import timing
from rankfold.errors import Refused
from rankfold.ops import (
    Chain,
    Conv,
    Convolution,
    ConvTranspose,
    Embedding,
    Extent,
    Linear,
    Op,
    geometry,
)
from rankfold.ops.interpolation import stored_weight
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.layouts.depthwise import depthwise_conv
from rankfold_jax.layouts.interpolative import form_of, multiplied

_LETTERS = "DHW"


def seconds(
    op: Op,
    chains: Sequence[Chain],
    extents: Sequence[Extent],
    dtype: Any,
    build: Callable[[Chain], object],
) -> tuple[float, ...]:
    """Return median seconds of a layer and of chains in its place, one call per extent.

    Args:
        op: the layer.
        chains: in its place.
        extents: of its inputs.
        dtype: of its arrays.
        build: refuses chains that cannot be built, which take forever.
    """
    # One compiled function runs all calls of the layer, as the compiled model does.
    inputs = [_input(op, extent, dtype) for extent in extents]
    passes: list[Callable[[], object] | None] = [_pass((op,), inputs, dtype)]
    passes += [_pass(c, inputs, dtype) if _built(build, c) else None for c in chains]
    return timing.medians(passes, timing.LAYER, jax.block_until_ready)


def _built(build: Callable[[Chain], object], chain: Chain) -> bool:
    try:
        build(chain)
    except Refused:
        return False
    return True


def _pass(chain: Chain, inputs: Sequence[jax.Array], dtype: Any) -> Callable[[], object]:
    def run(weights: Any, inputs: Any) -> Any:
        return [_applied(chain, weights, x) for x in inputs]

    return _bound(jax.jit(run), [_weight(stage, dtype) for stage in chain], inputs)


def model_seconds(flows: Sequence[PureModel], inputs: Any) -> tuple[float, ...]:
    """Return median seconds of one forward pass of each model, compiled."""
    passes = []
    for flow in flows:
        ((program, arrays),) = flow.programs([inputs])
        passes.append(_bound(program.compiled, flow.values, [_filled(x) for x in arrays]))
    return timing.medians(passes, timing.MODEL, jax.block_until_ready)


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
    # Arguments are on the device before the clock starts. They are arguments and no constants,
    # which XLA would fold into the program.
    placed = jax.device_put(arguments)
    return lambda: function(*placed)


def _input(op: Op, extent: Extent, dtype: Any) -> jax.Array:
    # The same numbers for the layer and its chains.
    rng = np.random.default_rng(0)
    if isinstance(op, Embedding):
        return jnp.asarray(rng.integers(0, len(op.weight), extent))
    into = op.weight.shape[1] * op.groups
    return jnp.asarray(rng.standard_normal((*extent, into), dtype=np.float32), dtype)


def _filled(x: Any) -> Any:
    """Return zeros for a shape that stands for an array; an array as it is."""
    return jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x


def _weight(stage: Op, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Return the weight as a Flax layer holds it, and the bias."""
    weight = np.asarray(stored_weight(stage))
    if isinstance(stage, Linear) and stage.pivots is None:
        weight = weight.reshape(stage.groups, -1, weight.shape[1]).swapaxes(1, 2)
        weight = weight[0] if stage.groups == 1 else weight
    elif not isinstance(stage, Embedding):
        weight = np.moveaxis(weight, (0, 1), (-1, -2))
    bias = None if stage.bias is None else jnp.asarray(stage.bias, dtype)
    return jnp.asarray(weight, dtype), bias


def _applied(chain: Chain, weights: Any, x: Any) -> Any:
    for stage, (weight, bias) in zip(chain, weights, strict=True):
        if isinstance(stage, (Linear, Conv)) and stage.pivots is not None:
            x = form_of(stage).apply(x, weight, bias, multiplied)
            continue
        if isinstance(stage, Embedding):
            x = jnp.take(weight, x, axis=0)
        elif isinstance(stage, Linear):
            x = _linear(stage, weight, x)
        else:
            x = _convolution(stage, weight, x)
        if bias is not None:
            x = x + bias
    return x


def _linear(stage: Linear, weight: Any, x: Any) -> Any:
    if stage.groups == 1:
        return x @ weight
    # Groups as a batch of products: layers of a stack side by side.
    split = x.reshape(*x.shape[:-1], stage.groups, -1)
    return jnp.einsum("...gi,gio->...go", split, weight).reshape(*x.shape[:-1], -1)


def _convolution(stage: Convolution, weight: Any, x: Any) -> Any:
    geo = geometry(stage)
    pads = geo.pads(x.shape[1:-1])
    ones = (1,) * geo.axes
    strides, wide = geo.stride, ones
    if isinstance(stage, ConvTranspose):
        strides, wide = ones, geo.stride
        # A transposed convolution is one of the dilated input: full padding, less what is cut off.
        pads = tuple(
            (reach - 1 - low, reach - 1 - high + extra)
            for reach, (low, high), extra in zip(geo.reach, pads, geo.output_padding, strict=True)
        )
    letters = _LETTERS[-geo.axes :]
    depthwise = 1 < stage.groups == len(stage.weight) == stage.groups * stage.weight.shape[1]
    function = depthwise_conv if depthwise else lax.conv_general_dilated
    return function(
        x,
        weight,
        strides,
        pads,
        lhs_dilation=wide,
        rhs_dilation=geo.dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=stage.groups,
    )
