"""The identity, whose gradient is the second moment of the gradients that pass through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gradient_moment_tap(
    gram_of: Callable[[jax.Array], jax.Array], y: Any, zeros: Any, groups: Any
) -> Any:
    """Return `y`; the gradient of the zeros is the moment of the gradients at `y`."""
    del gram_of, zeros, groups
    return y


def _forward(
    gram_of: Callable[[jax.Array], jax.Array], y: Any, zeros: Any, groups: Any
) -> tuple[Any, Any]:
    del gram_of
    # Zeros are saved for their shape: the backward pass is not given the arguments.
    return y, (jnp.zeros_like(zeros), groups)


def _back(gram_of: Callable[[jax.Array], jax.Array], saved: Any, gradient: Any) -> Any:
    zeros, groups = saved
    # The gradient passes on as it is. JAX adds up the cotangents of the zeros over all uses of
    # them, which makes the sum over all calls of a layer.
    return gradient, zeros.at[groups].add(gram_of(gradient)), None


gradient_moment_tap.defvjp(_forward, _back)
