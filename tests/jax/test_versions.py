"""What the adapters need of JAX and Flax, and how a version without it is told."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rankfold import RankfoldError
from rankfold_jax.versions import check_call, key_implementation, replacements, thread_state

X = np.ones(3, np.float32)


def test_what_replaces_layers_is_part_of_the_key_of_a_trace() -> None:
    traces: list[int] = []

    @jax.jit
    def function(x: Any) -> Any:
        traces.append(1)
        return x

    what = object()
    for _ in range(2):
        jax.eval_shape(function, X)
        with replacements(what):
            jax.eval_shape(function, X)
    assert len(traces) == 2
    with replacements(object()):
        jax.eval_shape(function, X)
    assert len(traces) == 3


def test_the_state_of_the_thread_is_put_back() -> None:
    traces: list[int] = []

    @jax.jit
    def function(x: Any) -> Any:
        traces.append(1)
        return x

    undo = thread_state()
    jax.eval_shape(function, X)
    inside = replacements(object())
    inside.__enter__()  # and is never left, as by an interrupt
    undo()
    jax.eval_shape(function, X)
    assert len(traces) == 1
    inside.__exit__(None, None, None)
    jax.eval_shape(function, X)
    assert len(traces) == 1


def test_a_flax_that_calls_methods_otherwise_is_named() -> None:
    check_call(nn.Module)
    with pytest.raises(RankfoldError, match=r"install flax 0\.12 or a newer rankfold"):
        check_call(object)


def test_the_implementation_of_a_key_makes_such_keys() -> None:
    for name in ("threefry2x32", "rbg"):
        key = jax.random.key(3, impl=name)
        again = jax.random.wrap_key_data(
            jax.random.key_data(key), impl=key_implementation(key.dtype)
        )
        assert again.dtype == key.dtype
        assert jnp.array_equal(jax.random.key_data(again), jax.random.key_data(key))
