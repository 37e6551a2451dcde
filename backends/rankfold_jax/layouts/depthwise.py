"""Depthwise convolution as shifts, multiplications and additions.

XLA's own depthwise convolution on CPU is slower than the dense one it replaces. The form here
computes the same from the same parameters, and is used on CPU only; `lax.platform_dependent`
chooses when the program is compiled. It stands in for `lax.conv_general_dilated` through the
argument of that name that Flax's convolutions have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rankfold.errors import RankfoldError


def depthwise_conv(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> jax.Array:
    """Compute `lax.conv_general_dilated` with one group per channel; faster on CPU.

    Args:
        lhs: the input.
        rhs: the kernel.
        window_strides: one per spatial axis.
        padding: a string or (low, high) pairs.
        lhs_dilation: of the input; where it is not 1 the usual form is taken.
        rhs_dilation: of the kernel.
        dimension_numbers: as for `lax.conv_general_dilated`.
        feature_group_count: the number of channels.
        precision: of the usual form.
        preferred_element_type: of the result.
        options: handed to the usual form.
    """
    # The plain form: for devices other than the CPU, and for what the other form does not compute.
    usual: Callable[[jax.Array, jax.Array], jax.Array] = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **options,
    )
    # (batch, channel, *space) axes of the input, (out, in, *space) of the kernel.
    spec = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    channels = lhs.shape[spec.lhs_spec[1]]
    # As many outputs as channels, each of one input channel: no channel multiplier.
    one_each = feature_group_count == channels == rhs.shape[spec.rhs_spec[0]]
    if not one_each or any(step != 1 for step in lhs_dilation or ()):
        return usual(lhs, rhs)
    shifted = partial(
        _shift_multiply_add,
        strides=tuple(window_strides),
        padding=padding,
        dilation=tuple(rhs_dilation or (1,) * len(window_strides)),
        spec=spec,
        dtype=preferred_element_type,
    )
    output: jax.Array = lax.platform_dependent(lhs, rhs, cpu=shifted, default=usual)
    return output


def _shift_multiply_add(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    strides: tuple[int, ...],
    padding: str | Sequence[tuple[int, int]],
    dilation: tuple[int, ...],
    spec: Any,
    dtype: Any,
) -> jax.Array:
    """Return the sum over the taps of the kernel of shifted inputs times one number per channel."""
    # Channels last, where each product is contiguous over the channels.
    x = jnp.transpose(lhs, (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]))
    kernel = jnp.transpose(rhs, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))[..., 0, :]
    *taps, channels = kernel.shape
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    # `jnp.pad` does not crop, which negative padding of `lax` means.
    if any(side < 0 for pair in padding for side in pair):
        raise RankfoldError(f"depthwise convolution: padding {padding}; use at least 0")
    if dtype is not None:
        x, kernel = x.astype(dtype), kernel.astype(dtype)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    # Python integers: shapes are known when this is traced, and the loop below is unrolled.
    out = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    total: jax.Array | None = None
    for tap in np.ndindex(*taps):
        start = [t * d for t, d in zip(tap, dilation, strict=True)]
        stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, out, strides, strict=True)]
        window = lax.slice(x, (0, *start, 0), (x.shape[0], *stop, channels), (1, *strides, 1))
        term = window * kernel[tap]
        total = term if total is None else total + term
    assert total is not None
    # From (batch, *space, channel) to the order of axes of the output: the inverse of a
    # permutation.
    order: list[int] = np.argsort((spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])).tolist()
    return jnp.transpose(total, order)
