"""Ways in which a function may come to multiply by a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import linear_call

X = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)
W = np.random.default_rng(2).standard_normal((5, 5)).astype(np.float32) / 3
STACK = np.random.default_rng(3).standard_normal((4, 5, 5)).astype(np.float32) / 3


@jax.custom_jvp
def doubled(x: jax.Array) -> jax.Array:
    return 2 * x


doubled.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))


@jax.custom_vjp
def with_weight(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


with_weight.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))

CONSTRUCTS: dict[str, tuple[Callable[..., Any], tuple[int, ...], list[Any]]] = {
    "plain": (lambda p, x: x @ p["w"], (2,), [X]),
    "nested jit": (lambda p, x: jax.jit(jax.jit(lambda a: a @ p["w"]))(x), (2,), [X]),
    "remat": (lambda p, x: jax.checkpoint(lambda a, w: a @ w)(x, p["w"]), (2,), [X]),
    "custom_jvp": (lambda p, x: doubled(x) @ p["w"], (2,), [2 * X]),
    "custom_vjp": (lambda p, x: with_weight(x, p["w"]), (2,), [X]),
    "linear_call": (
        lambda p, x: linear_call(lambda w, a: a @ w, lambda w, g: g @ w.T, p["w"], x),
        (2,),
        [X],
    ),
    "vmap over the input": (
        lambda p, x: jax.vmap(lambda row: row @ p["w"])(x),
        (2,),
        [X],
    ),
    "cast": (lambda p, x: x @ p["w"].astype(jnp.float16).astype(jnp.float32), (2,), [X]),
    "transposed": (lambda p, x: x @ p["w"].T.reshape(5, 5).T, (2,), [X]),
    "scan": (
        lambda p, x: lax.scan(lambda c, _: (c, c @ p["w"]), x, None, length=3)[1],
        (3, 2),
        [X, X, X],
    ),
    "fori_loop": (
        lambda p, x: lax.fori_loop(0, 3, lambda i, c: c + 0 * (x @ p["w"]), x),
        (3, 2),
        [X, X, X],
    ),
    "while": (
        lambda p, x: lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + 0 * (x @ p["w"])), (0, x)
        ),
        (2,),
        [X, X, X],
    ),
    "cond": (lambda p, x: lax.cond(x.sum() > 99, lambda: x, lambda: x @ p["w"]), (2,), [X]),
    "carried": (
        lambda p, x: lax.scan(lambda c, _: ((c[0], c[1]), c[1] @ c[0]), (p["w"], x), None, 2)[1],
        (2, 2),
        [X, X],
    ),
}
