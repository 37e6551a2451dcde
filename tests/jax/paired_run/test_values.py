"""Values of two runs side by side, computed once where they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from rankfold_jax.jaxpr import control_flow as flow
from rankfold_jax.jaxpr.element_index import IndexedValue
from rankfold_jax.paired_run.values import (
    DeferredParameter,
    both,
    last_reads,
    moved_lazily,
    read,
    slice_of,
    stacked,
    structure,
    turns_of,
)

A, B = jnp.arange(3.0), jnp.ones(3)


def equation(function: Callable[..., Any], *arguments: Any) -> JaxprEqn:
    (eqn,) = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return eqn


def test_what_agrees_stays_one_object() -> None:
    eqn = equation(jnp.add, A, B)
    ((same, too),) = both(eqn, [(A, A), (B, B)])  # type: ignore[misc]  # pairs
    assert same is too
    ((first, second),) = both(eqn, [(A, A), (B, A)])  # type: ignore[misc]
    assert (first.tolist(), second.tolist()) == ([1, 2, 3], [0, 2, 4])


def test_a_moved_parameter_is_made_when_it_is_read() -> None:
    w = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    value = DeferredParameter(IndexedValue.whole(0, w.shape))
    turned = moved_lazily(equation(lambda w: w.T, w), [value])
    assert turned is not None
    assert turned.tracked.index is not None
    np.testing.assert_array_equal(turned.of(w), w.T)
    np.testing.assert_array_equal(turned.tracked.index, w.T)
    row = slice_of(turned, 3, 1)
    assert isinstance(row, DeferredParameter)
    np.testing.assert_array_equal(row.of(w), w[:, 1])
    assert moved_lazily(equation(lambda w: w * 2, w), [value]) is None
    assert moved_lazily(equation(lambda w: w.T, w), [(w, w)]) is None


def test_slices_and_stacks_keep_what_agrees() -> None:
    x = jnp.arange(6.0).reshape(3, 2)
    first, second = slice_of((x, x), 3, 2)  # type: ignore[misc]
    assert first is second
    assert first.tolist() == [4, 5]
    first, second = slice_of((x, -x), 3, 2)  # type: ignore[misc]
    assert (first.tolist(), second.tolist()) == ([4, 5], [-4, -5])
    first, second = stacked([(A, A), (B, B)])
    assert first is second
    first, second = stacked([(A, A), (B, A)])
    assert (first[1].tolist(), second[1].tolist()) == ([1, 1, 1], [0, 1, 2])


def test_values_are_given_up_after_their_last_reader() -> None:
    def function(a: Any, b: Any) -> Any:
        c = a + b
        d = c * a
        return d - 1.0, d

    jaxpr = jax.make_jaxpr(function)(A, B).jaxpr
    add, multiply, subtract = jaxpr.eqns
    (a, b), (c,), (d,) = jaxpr.invars, add.outvars, multiply.outvars
    ends = {index: set(names) for index, names in last_reads(jaxpr).items()}
    assert ends == {0: {b}, 1: {a, c}}
    assert d in jaxpr.outvars  # an output is kept
    env: dict[Any, Any] = {d: (A, B)}
    value, number = read(env, subtract.invars)
    assert value == (A, B)
    assert number[0] is number[1]
    assert float(number[0]) == 1


def test_runs_of_one_structure_go_in_step() -> None:
    def scanned(length: int, body: Callable[..., Any]) -> Any:
        return jax.make_jaxpr(lambda x: lax.scan(lambda c, _: (body(c), None), x, None, length)[0])(
            A
        )

    def turns(closed: Any) -> Any:
        scan = flow.split(closed.jaxpr.eqns[0])
        assert isinstance(scan, flow.Scan)
        return turns_of(scan)

    four, again, five, cosine = (
        scanned(n, body) for n, body in ((4, jnp.sin), (4, jnp.sin), (5, jnp.sin), (4, jnp.cos))
    )
    assert turns(four) == turns(again)
    assert turns(four) != turns(five)
    assert turns(four) != turns(cosine)
    inner = jax.make_jaxpr(jax.jit(lambda x: jnp.sin(x) + 1))(A).jaxpr
    assert structure(inner)[0][1] == (("sin", None), ("add", None))
